"""The same residual stream under PEFT, gradient checkpointing, bfloat16, torch.compile and a device map."""

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from hf_rksp.capture import TrainingTap, capture_transitions, find_stacks
from hf_rksp.capture.calling import forward
from hf_rksp.profile import profile_model
from hf_rksp.spectral import SecondMoments
from tests.capture.models import CASES, LAYERS, TOKENS, all_moments, relative_difference, transitions
from tests.versions import needs_inner_checkpointing

LLAMA = CASES["llama"]


def assert_equal_states(got, expected, **tolerance):
    assert len(got) == len(expected) == LAYERS
    for states, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(states, wanted, **tolerance)


# PEFT


def test_lora_is_seen():
    model, batch = LLAMA.build(head=True), LLAMA.batch()
    plain = transitions(model, batch)["model.layers"]
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    path = "base_model.model.model.layers"
    seen = transitions(adapted, batch)
    assert list(seen) == [path]
    assert torch.equal(seen[path][0][0], plain[0][0])
    assert not torch.allclose(seen[path][0][1], plain[0][1])
    with adapted.disable_adapter():
        assert_equal_states(transitions(adapted, batch)[path], plain)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_prompt_tuning_counts_the_text_alone(name):
    case = CASES[name]
    task = "SEQ_2_SEQ_LM" if name == "bart" else "CAUSAL_LM"
    base = case.build(head=True, dtype=torch.float64)
    model = get_peft_model(base, PromptTuningConfig(task_type=task, num_virtual_tokens=4)).double().eval()
    batch = case.batch(4)
    seen, moments = transitions(model, batch), all_moments(model, [batch])
    prompts = [states[0][0].shape[1] - TOKENS for states in seen.values()]
    assert prompts == [4, 0][: len(seen)]  # the decoder gets no prompt
    for (path, index), sets in moments.items():
        x, y = (state[:, -TOKENS:] for state in seen[path][index])
        expected = SecondMoments(x.shape[-1])
        expected.update(x, y, batch["decoder_attention_mask" if "decoder" in path else "attention_mask"])
        assert relative_difference(sets[0], expected) <= 1e-10


def test_prompt_tuning_without_a_mask_leaves_the_prompt_out():
    model = get_peft_model(LLAMA.build(head=True), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    moments = all_moments(model.eval(), [{"input_ids": LLAMA.batch(3)["input_ids"]}])
    assert {sets[0].count for sets in moments.values()} == {3 * TOKENS}


def test_prefix_tuning_lengthens_the_cache_but_not_the_stream():
    model = get_peft_model(LLAMA.build(head=True), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    batch = LLAMA.batch(3)
    moments = all_moments(model.eval(), [batch])
    assert {sets[0].count for sets in moments.values()} == {int(batch["attention_mask"].sum())}


def test_no_cache_is_kept_under_peft():
    model = get_peft_model(LLAMA.build(head=True), LoraConfig(target_modules=["q_proj"]))
    asked = []
    model.base_model.model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    forward(model, LLAMA.batch())
    assert asked[0]["use_cache"] is False


# Gradient checkpointing, bfloat16


@pytest.mark.parametrize("reentrant", [False, pytest.param(True, marks=needs_inner_checkpointing)])
def test_gradient_checkpointing_in_training(reentrant):
    model, batch = LLAMA.build(head=True), LLAMA.batch()
    plain = transitions(model, batch)["model.layers"]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    seen, needs_grad = [], []

    def sink(stack, block, x, y):
        seen.append((x, y))
        needs_grad.extend([x.requires_grad, y.requires_grad])

    with capture_transitions(find_stacks(model), sink):
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()  # recomputes every block
    assert_equal_states(seen, plain)
    assert not any(needs_grad)
    assert all(parameter.grad is not None for parameter in model.model.layers.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_profiling_with_gradient_checkpointing_enabled(reentrant):
    model, batch = LLAMA.build(), LLAMA.batch(8)
    plain = profile_model(model, [batch], groups=0, progress=False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    again = profile_model(model, [batch], groups=0, progress=False)
    assert [layer.near_unit_mass for layer in again.layers] == [layer.near_unit_mass for layer in plain.layers]
    assert model.is_gradient_checkpointing and model.training


def test_bfloat16():
    model, batch = LLAMA.build(dtype=torch.bfloat16), LLAMA.batch(8)
    seen = transitions(model, batch)["layers"]
    assert all(x.dtype == y.dtype == torch.bfloat16 for x, y in seen)
    precise = LLAMA.build()
    precise.load_state_dict(model.state_dict())
    assert_equal_states(
        [(x.float(), y.float()) for x, y in seen], transitions(precise, batch)["layers"], atol=0.3, rtol=0.1
    )
    moments = all_moments(model, [batch])
    mask = batch["attention_mask"].bool()
    for (x, y), sets in zip(seen, moments.values(), strict=True):
        expected = torch.cov(torch.cat([x[mask], y[mask]], 1).double().T, correction=0) * mask.sum()
        assert sets[0].cxx.dtype == torch.float64
        torch.testing.assert_close(sets[0].cyx, expected[x.shape[-1] :, : x.shape[-1]])


# torch.compile


def compiled(model, how):
    if how == "wrapped":
        return torch.compile(model, backend="eager")
    if how == "in place":
        model.compile(backend="eager")
    elif how == "each block":
        for i, layer in enumerate(model.layers):
            model.layers[i] = torch.compile(layer, backend="eager")
    return model


@pytest.mark.parametrize("already_run", [False, True], ids=["fresh", "run"])
@pytest.mark.parametrize("how", ["wrapped", "in place", "each block"])
def test_torch_compile(how, already_run):
    torch.compiler.reset()
    batch = LLAMA.batch(8)
    plain = profile_model(LLAMA.build(), [batch], groups=0, progress=False)
    expected = transitions(LLAMA.build(), batch)["layers"]
    model = compiled(LLAMA.build(), how)
    with torch.no_grad():
        if already_run:
            model(**batch)
        assert_equal_states(transitions(model, batch)["layers"], expected)
        profile = profile_model(model, [batch], groups=0, progress=False)
        assert [layer.path for layer in profile.layers] == [layer.path for layer in plain.layers]
        for layer, wanted in zip(profile.layers, plain.layers, strict=True):
            assert layer.spectral_radius == pytest.approx(wanted.spectral_radius, rel=1e-5)
        assert_equal_states(transitions(model, batch)["layers"], expected)


def test_compiled_functions_are_compiled_again_afterwards():
    torch.compiler.reset()
    compilations = []

    def backend(graph, example):
        compilations.append(graph)
        return graph.forward

    function = torch.compile(nn.Linear(2, 2), backend=backend)
    transitions(LLAMA.build(), LLAMA.batch())
    function(torch.ones(1, 2))
    assert len(compilations) == 1


# Several devices


def test_distributed_data_parallel():
    """Paths have the wrapper in front, and the decoder still has its own mask."""
    case = CASES["t5"]
    batch = case.batch(4)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        moments = all_moments(nn.parallel.DistributedDataParallel(case.build()), [batch])
    finally:
        torch.distributed.destroy_process_group()
    counts = {path: sets[0].count for (path, _), sets in moments.items()}
    assert counts == {
        "module.encoder.block": int(batch["attention_mask"].sum()),
        "module.decoder.block": int(batch["decoder_attention_mask"].sum()),
    }


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba"])
def test_blocks_offloaded_to_disk(name, tmp_path):
    case = CASES[name]
    # Weights in a mapped file lie at other places of a cache line, where products may round differently.
    model, batch = case.build(head=True, dtype=torch.float64), case.batch(8)
    path = next(iter(case.paths(head=True)))
    plain = profile_model(model, [batch], groups=0, progress=False)
    model.save_pretrained(tmp_path / "model")
    places = {name: "cpu" for name, module in model.named_modules() if not any(module.children())}
    places = {name: place for name, place in places.items() if not name.startswith(f"{path}.")}
    places |= {f"{path}.{i}": "disk" if i else "cpu" for i in range(LAYERS)}
    options = {"attn_implementation": "eager", "experts_implementation": "eager", "offload_folder": tmp_path / "folder"}
    options |= {"dtype": torch.float64}
    offloaded = type(model).from_pretrained(tmp_path / "model", device_map=places, **options)
    on_disk = [
        block.path for block in find_stacks(offloaded)[0].blocks if any(p.is_meta for p in block.module.parameters())
    ]
    assert on_disk == [f"{path}.1", f"{path}.2"]
    profile = profile_model(offloaded, [batch], groups=0, progress=False)
    for quantity in ("near_unit_mass", "spectral_radius", "nonlinearity_ratio"):
        want = [getattr(layer, quantity) for layer in plain.layers]
        assert [getattr(layer, quantity) for layer in profile.layers] == pytest.approx(want, rel=1e-9), quantity
    assert all(p.is_meta for path in on_disk for p in offloaded.get_submodule(path).parameters())


# One module, several runs


class Looped(nn.Module):
    """Two layers that are passed twice, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        for _ in range(2):
            for layer in self.layers:
                x = layer(x)
        return x


def test_runs_of_one_module_are_told_apart():
    model, x = Looped().train(), torch.ones(1, 3, 4, requires_grad=True)
    states, seen, tapped = [x], [], []
    for _ in range(2):
        for layer in model.layers:
            states.append(layer(states[-1]))

    def finish(transitions, batch):
        tapped.extend((t.block.index, t.block.path, t.x.detach().clone(), t.y.detach().clone()) for t in transitions)

    stacks = find_stacks(model, "layers")
    with TrainingTap(model, stacks, finish):
        for _ in range(2):
            model(x)
    with capture_transitions(stacks, lambda s, block, x, y: seen.append((block.index, block.path, x, y))) as runs:
        for _ in range(2):
            runs.next_pass()
            model(x)
    for found in (tapped, seen):
        assert [index for index, *_ in found] == 2 * [0, 1, 2, 3]
        assert [path for _, path, _, _ in found[:4]] == ["layers.0", "layers.1", "layers.0 (run 2)", "layers.1 (run 2)"]
        assert [stacks[0].find(index).path for index in range(4)] == [path for _, path, _, _ in found[:4]]
        for k, (_, _, before, after) in enumerate(found):
            assert torch.equal(before, states[k % 4]) and torch.equal(after, states[k % 4 + 1])

"""Random weights are those of ``AutoModel.from_config``, whoever draws them, and a seed names their bytes."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_rksp.errors import ModelLoadError
from hf_rksp.inputs.initialise import Initialiser, skeleton
from hf_rksp.inputs.skeletons import Skeleton
from tests.capture import models
from tests.versions import OLD

sys.path.append(str(Path(__file__).parents[2] / "scripts" / "support"))
from init_check import check_init, tensors, unwritten

_TEXT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SOUND = {**_TEXT, "conv_dim": (8, 8), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
_SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}

_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
_VIT |= {"image_size": 16, "patch_size": 8}
_TIME = {"prediction_length": 4, "context_length": 8, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
_TIME |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
_CLIP = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "projection_dim": 16,
}

#: Of each way in which a tensor comes to its number, one or more model types.
TYPES = {
    "apertus": {**_TEXT, "num_key_value_heads": 2},  # an activation with weights of its own
    "openai-gpt": _GPT,  # Conv1D, which no scheme of its knows
    "decision_transformer": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "max_ep_len": 8, "vocab_size": 8},  # the same
    "imagegpt": _GPT,  # a scheme of the whole model reaches into its blocks
    "gpt_neo": {**_TEXT, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},  # masks
    "wav2vec2": _SOUND,  # weight normalisation
    "zamba": {**_TEXT, "num_hidden_layers": 4, "layers_block_type": ["linear_attention"] * 2 + ["hybrid"] * 2,
              "n_mamba_heads": 2, "mamba_d_state": 4, "mamba_dt_rank": 2, "attention_head_dim": 16},  # weights shared by blocks
    "falcon_h1": {**_TEXT, "num_key_value_heads": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
                  "mamba_d_state": 4, "mamba_chunk_size": 4},  # a table that the model puts into its blocks
    "t5": {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2},  # tied, a table of positions
    "rwkv": {"vocab_size": 40, "hidden_size": 16, "attention_hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 16},
    "mamba": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "bert": _TEXT,  # positions: integers
    "big_bird": {**_TEXT, "block_size": 4},
    "clip": {"text_config": {**_CLIP, "vocab_size": 40}, "vision_config": {**_CLIP, "image_size": 16, "patch_size": 8},
             "projection_dim": 16},  # one number of the model itself
    "swin": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    "beit": {**_VIT, "use_relative_position_bias": True},
    "autoformer": _TIME,  # a table of sines
    "mimi": {"num_filters": 2, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
             "head_dim": 8, "intermediate_size": 16, "codebook_size": 8, "codebook_dim": 8, "num_quantizers": 2,
             "vector_quantization_hidden_dimension": 8, "upsampling_ratios": [2, 2],
             "upsample_groups": 16},  # tensors that are plain attributes
    "mixtral": {**_TEXT, "num_key_value_heads": 2, "num_local_experts": 2},
}  # fmt: skip


def config_of(name):
    return AutoConfig.for_model(name, **TYPES[name])


@pytest.mark.parametrize("name", TYPES)
def test_the_weights_are_those_of_from_config(name):
    if OLD and name == "zamba":
        pytest.skip("transformers before 5.9 ties other weights of it")
    assert check_init(config_of(name)) == []


# --- Models that are made up here: one way each ---------------------------------------------------------------------


class MadeUpConfig(PreTrainedConfig):
    model_type = "made-up-for-tests"
    way: str = "filled"
    layers: int = 2
    hidden_size: int = 16


def _filled(block, layer):
    block.alpha = nn.Parameter(torch.rand(64) + layer)


def _constant(block, layer):
    block.register_buffer("turn", torch.polar(torch.ones(5), torch.arange(5.0)), persistent=False)


def _integers(block, layer):
    block.register_buffer("order", torch.randperm(300), persistent=False)
    block.register_buffer("mask", torch.ones(8, 8).tril().bool(), persistent=False)


def _by_the_parent(block, layer):
    block.part = nn.Module()
    block.part.gate = nn.Parameter(torch.full((3,), 0.25))
    nn.init.uniform_(block.part.gate[:1], 2, 3)


def _replaced_by_the_parent(block, layer):
    block.part = nn.Module()
    block.part.gate = nn.Parameter(torch.ones(3))
    nn.Linear(2, 2)  # built and forgotten
    block.part.gate = nn.Parameter(torch.randn(300))


def _copied_parts(block, layer):
    part = nn.Module()
    part.gate = nn.Parameter(torch.randn(300))
    block.part = copy.deepcopy(part)


def _weight_norm(block, layer):
    block.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 16, 3), dim=2)


def _plain(block, layer):
    block.table = torch.linspace(0, 1, 7) + torch.rand(7)


def _legacy(block, layer):
    block.table = nn.Parameter(torch.Tensor(6).uniform_(1, 2))


def _other_generators(block, layer):
    import random

    import numpy as np

    block.table = nn.Parameter(torch.tensor(np.random.rand(40) + random.random()).float())


def _scaled_by_the_scheme(block, layer):
    block.scaled = nn.Parameter(torch.randn(400))


def _reads_numbers(block, layer):
    block.alpha = nn.Parameter(torch.rand(64) * torch.ones(3).sum().item())


def _empty(block, layer):
    block.never = nn.Parameter(torch.empty(5))


def _empty_integers(block, layer):
    block.register_buffer("never", torch.empty(5, dtype=torch.long))


WAYS = {way.__name__[1:]: way for way in (
    _filled, _constant, _integers, _by_the_parent, _replaced_by_the_parent, _copied_parts, _weight_norm, _plain, _legacy,
    _other_generators, _scaled_by_the_scheme, _reads_numbers, _empty, _empty_integers,
)}  # fmt: skip


class MadeUpBlock(GradientCheckpointingLayer):
    def __init__(self, config, layer, common):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        if config.way == "one_module_for_all":
            self.common = common
        elif config.way == "one_weight_for_all":
            self.linear.weight = common.weight
        elif config.way == "one_weight_twice":
            self.again = nn.Linear(16, 16)
            self.again.weight = self.linear.weight
        elif config.way in WAYS:
            WAYS[config.way](self, layer)

    def forward(self, x):
        return x + self.linear(x)


class MadeUpModel(PreTrainedModel):
    config_class = MadeUpConfig

    def __init__(self, config):
        super().__init__(config)
        common = nn.Linear(16, 16)
        if config.way == "copied":
            first = MadeUpBlock(MadeUpConfig(way="filled"), 0, common)
            self.blocks = nn.ModuleList(copy.deepcopy(first) for _ in range(config.layers))
        else:
            self.blocks = nn.ModuleList(MadeUpBlock(config, layer, common) for layer in range(config.layers))
        if config.way in ("after_the_blocks", "from_above"):
            self.offset = nn.Parameter(torch.rand(30))
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self and self.config.way == "from_above":
            for block in self.blocks:
                nn.init.normal_(block.linear.weight, std=1e-4)
        # A block has no tensors of its own: transformers passes over it where the code is not its own.
        if self.config.way == "passed_over" and isinstance(module, MadeUpBlock):
            nn.init.normal_(module.linear.weight, std=1e-4)
        if hasattr(module, "scaled"):
            module.scaled.mul_(10)


AutoModel.register(MadeUpConfig, MadeUpModel, exist_ok=True)
SHARING = ["one_module_for_all", "one_weight_for_all", "one_weight_twice"]
RIGHT = [way for way in WAYS if not way.startswith("empty")] + [
    *SHARING,
    "copied",
    "after_the_blocks",
    "from_above",
    "passed_over",
]


@pytest.mark.parametrize("way", RIGHT)
def test_every_way_to_fill_a_tensor(way):
    assert check_init(MadeUpConfig(way=way)) == []


@pytest.mark.parametrize("way", ["empty", "empty_integers"])
def test_what_nobody_draws_is_refused_with_its_name(way):
    for streamed in (False, True):
        weights = Initialiser(skeleton(MadeUpConfig(way=way), torch.float32), 0)
        with pytest.raises(ModelLoadError, match=r"blocks\.0\.never of MadeUpModel is never drawn.*checkpoint"):
            weights.make(weights.blocks[0]) if streamed else weights.make_all()


def test_a_model_too_large_to_be_built_at_once_is_refused(monkeypatch):
    monkeypatch.setattr("hf_rksp.inputs.skeletons.available_memory", lambda: 16)
    Initialiser(skeleton(MadeUpConfig(way="filled"), torch.float32), 0).make_all()
    with pytest.raises(ModelLoadError, match=r"blocks\.0\.alpha.*not memory enough"):
        Initialiser(skeleton(MadeUpConfig(way="copied"), torch.float32), 0).make_all()


@pytest.mark.parametrize("way", ["filled", "one_weight_for_all"])
def test_float64_and_bfloat16(way):
    config = MadeUpConfig(way=way)
    single = Initialiser(skeleton(config, torch.float32), 3).make_all().state_dict()
    weights = Initialiser(skeleton(config, torch.float32), 3, double=True)
    double = weights.make_all().state_dict()
    assert all(
        double[name].dtype == torch.float64 and torch.equal(double[name], single[name].double()) for name in single
    )
    for block in weights.blocks:
        weights.drop(block)
        weights.make(block)
        assert torch.equal(block.module.linear.weight, single[f"{block.path}.linear.weight"].double())
    half = Initialiser(skeleton(config, torch.bfloat16), 3).make_all()
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("way", "there"),
    [
        ("filled", ["blocks.1.alpha", "blocks.1.linear.weight", "blocks.1.linear.bias"]),
        ("after_the_blocks", ["offset"]),
    ],
)
def test_no_other_block_is_built_for_a_tensor(monkeypatch, way, there):
    """One block at a time has memory, when a model is streamed."""
    built, own = [], Skeleton.build

    def noted(self, here, away=()):
        built.append(own(self, here, away))
        return built[-1]

    monkeypatch.setattr(Skeleton, "build", noted)
    weights = Initialiser(skeleton(MadeUpConfig(way=way, layers=3), torch.float32), 0)
    weights.make_rest()
    weights.make(weights.blocks[1])
    assert [[name for name, tensor in tensors(model).items() if not tensor.is_meta] for model in built] == [there]


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "mamba", "bert", "vit"])
def test_a_seed_means_what_it_has_always_meant(name):
    """What transformers draws has the numbers that published reports were made with: a seed for each block, one for the rest."""
    import hashlib

    config = models.CASES[name].build().config
    model = skeleton(config, torch.float32).model.to_empty(device="cpu")
    weights = Initialiser(skeleton(config, torch.float32), 11)
    rest = [model.get_submodule(path) for path, module in weights.model.named_modules() if module in weights.rest]
    pieces = [("11", rest)] + [
        (f"11/{block.path}", list(model.get_submodule(block.path).modules())) for block in weights.blocks
    ]
    for piece, modules in pieces:
        torch.manual_seed(int.from_bytes(hashlib.sha256(piece.encode()).digest()[:8]) >> 1)
        for module in _inner_first(model):
            if module in set(modules):
                model._initialize_weights(module)
    want, got = tensors(model), tensors(weights.make_all())
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)


def _inner_first(model):
    for child in model.children():
        yield from _inner_first(child)
    yield model


def test_the_check_sees_what_it_is_for(monkeypatch):
    """Memory as it was found, one number off, another spread."""
    monkeypatch.setattr("init_check.DRAWS", ((5, 2),))
    monkeypatch.setattr(Initialiser, "_constructed", lambda self, piece, slots: {})
    monkeypatch.setattr("hf_rksp.inputs.tensors.untouched", lambda tensor: False)
    assert any("NaN" in problem for problem in check_init(MadeUpConfig(way="filled")))
    for way, change in (
        ("constant", lambda t: t * 1.001),
        ("filled", lambda t: t * 1.5),
        ("filled", lambda t: t + 0.5),
    ):
        monkeypatch.undo()
        monkeypatch.setattr("init_check.DRAWS", ((5, 2),))
        own = Initialiser.make_all

        def off(self, own=own, change=change):
            model = own(self)
            for name, tensor in tensors(model).items():
                if name.endswith(("turn", "alpha")):
                    tensor.copy_(change(tensor))
            return model

        monkeypatch.setattr(Initialiser, "make_all", off)
        assert any("blocks.1." in problem for problem in check_init(MadeUpConfig(way=way))), way


def test_global_state_is_left_alone():
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), nn.Module.__init__, nn.Linear.__init__
    with unwritten(3.0):
        Initialiser(skeleton(MadeUpConfig(way="reads_numbers"), torch.float32), 0).make_all()
    after = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), nn.Module.__init__, nn.Linear.__init__
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert "__init__" in vars(MadeUpBlock) and MadeUpBlock.__init__.__qualname__ == "MadeUpBlock.__init__"

"""The curvature of a run against two independent implementations of Hessian products and their own or scipy's Lanczos."""

import numpy
import pytest
import torch
from hessian_eigenthings import HessianOperator, LambdaOperator, hf_lm_loss, lanczos
from scipy.sparse.linalg import LinearOperator, eigsh
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from hf_rksp import CurvatureConfig, CurvatureMonitor, TrainingRun
from hf_rksp.history.read import read_history
from tests.training.common import gpt2

VOCAB, LENGTH, STEPS = 24, 12, 4


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, attn_implementation="eager", **sizes))


def vit():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=5, **sizes))


def tokens():
    ids = torch.randint(3, VOCAB, (4, LENGTH))
    return {"input_ids": ids, "labels": ids}


def images():
    return {"pixel_values": torch.randn(4, 3, 8, 8).double(), "labels": torch.randint(5, (4,))}


MODELS = {
    "gpt2": (lambda: gpt2(0.0, n_embd=16, n_layer=2, n_head=2, vocab_size=VOCAB, n_positions=LENGTH), tokens),
    "llama": (llama, tokens),
    "vit": (vit, images),
}


def watched(folder, name):
    """Train in float64; the model, its last batch, P^(-1/2) after the last step, and the last reading."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model = make().double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    monitor = CurvatureMonitor(CurvatureConfig(every=1))
    with TrainingRun(model, folder, STEPS, [monitor], optimizer=optimizer) as run:
        for _ in range(STEPS):
            batch = draw()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.step()
    roots = []
    for weight in model.parameters():
        state = optimizer.state[weight]
        root = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt()
        roots.append(torch.where(root >= 10 * 1e-8, (root + 1e-8).rsqrt(), 0.0).reshape(-1))
    return model.eval(), batch, torch.cat(roots), read_history(folder).of("curvature")[-1]["values"]


@pytest.mark.parametrize("name", MODELS)
def test_hessian_eigenthings(tmp_path, name):
    model, batch, scale, values = watched(tmp_path, name)
    hessian = HessianOperator(model, [batch], hf_lm_loss())
    operator = LambdaOperator(lambda v: scale * hessian.matvec(scale * v), hessian.size, dtype=torch.float64)
    found = lanczos(operator, k=1, max_iter=120, tol=1e-8, which="LA", reorthogonalize=True, seed=0)
    largest = float(found.eigenvalues[0])
    assert values["lambda_max"] == pytest.approx(largest, rel=2e-2)
    assert values["lambda_max"] <= largest * (1 + 1e-8), "a Ritz value is a lower bound"


@pytest.mark.parametrize("name", MODELS)
def test_curvlinops(tmp_path, name):
    """curvlinops needs torchvision, which is not among the requirements: run where it is installed."""
    curvlinops = pytest.importorskip("curvlinops")
    model, batch, scale, values = watched(tmp_path, name)
    hessian = curvlinops.HessianLinearOperator(
        lambda data: model(**data).logits,
        lambda logits, labels: model.loss_function(logits=logits, labels=labels, **_extra(model)),
        list(model.parameters()),
        [(_inputs(batch), batch["labels"])],
        check_deterministic=False,
        batch_size_fn=len,
    ).to_scipy()
    root = scale.numpy()
    operator = LinearOperator(hessian.shape, lambda v: root * (hessian @ (root * v.ravel())), dtype=numpy.float64)
    largest = eigsh(operator, k=1, which="LA", tol=1e-8, return_eigenvectors=False)[0]
    assert values["lambda_max"] == pytest.approx(largest, rel=2e-2)


def _inputs(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def _extra(model):
    return (
        {"vocab_size": VOCAB}
        if "ForCausalLM" in type(model).__name__ or "LMHead" in type(model).__name__
        else {"config": model.config}
    )

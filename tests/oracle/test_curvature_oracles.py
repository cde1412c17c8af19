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


def llama(**changes):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, **changes))


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
GELU = {"llama with gelu": (lambda: llama(hidden_act="gelu"), tokens)}


class Logits(torch.nn.Module):
    """The scores of the next tokens, one row each."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, data):
        return self.model(**data).logits[:, :-1].flatten(0, 1)


def watched(folder, name):
    """Train in float64; the model, its last batch, P^(-1/2) after the last step, and the last reading."""
    torch.manual_seed(0)
    make, draw = (MODELS | GELU)[name]
    model = make().double().train()
    model.set_attn_implementation("eager")  # for the oracles: fused kernels have no second derivative
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


def agrees(values, largest, product, model, batch, scale):
    """The reading is within its residual of the eigenvalue, and is the Rayleigh quotient at the gradient."""
    assert values["residual"] <= 0.1
    assert largest * (1 - values["residual"]) <= values["lambda_max"] <= largest * (1 + 1e-8), (
        "a Ritz value is a lower bound"
    )
    gradient = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    g = scale * torch.cat([part.reshape(-1) for part in gradient])
    assert values["lambda_direction"] == pytest.approx(float(g @ product(g) / (g @ g)), rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_hessian_eigenthings(tmp_path, name):
    model, batch, scale, values = watched(tmp_path, name)
    hessian = HessianOperator(model, [batch], hf_lm_loss())
    operator = LambdaOperator(lambda v: scale * hessian.matvec(scale * v), hessian.size, dtype=torch.float64)
    found = lanczos(operator, k=1, max_iter=120, tol=1e-8, which="LA", reorthogonalize=True, seed=0)
    agrees(values, float(found.eigenvalues[0]), operator.matvec, model, batch, scale)


def test_curvlinops(tmp_path):
    """Run where it is installed: it needs torchvision, which is not among the requirements.

    Its products are derivatives in forward mode of a gradient. In torch 2.13 these are wrong by several percent for the gain of a
    LayerNorm, as central differences show, and missing for SiLU; so the network has RMSNorm and GELU.
    """
    curvlinops = pytest.importorskip("curvlinops")
    model, batch, scale, values = watched(tmp_path, "llama with gelu")
    labels = batch["labels"][:, 1:].flatten()
    hessian = curvlinops.HessianLinearOperator(
        Logits(model),
        torch.nn.CrossEntropyLoss(),
        list(model.parameters()),
        [({"input_ids": batch["input_ids"]}, labels)],
        check_deterministic=False,
        batch_size_fn=lambda data: len(labels),
    ).to_scipy()
    root = scale.numpy()
    operator = LinearOperator(hessian.shape, lambda v: root * (hessian @ (root * v.ravel())), dtype=numpy.float64)
    largest = eigsh(operator, k=1, which="LA", tol=1e-8, return_eigenvectors=False)[0]
    agrees(values, float(largest), lambda v: torch.from_numpy(operator @ v.numpy()), model, batch, scale)

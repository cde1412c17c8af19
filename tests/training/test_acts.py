"""KSS adds exactly the gradient that it should: against a slow oracle in float64, and on its own it lowers its penalty."""

import pytest
import torch

from hf_rksp.config import KSSConfig
from hf_rksp.training import SpectralShaper
from tests.training.common import ALWAYS, Gradients, gpt2, livelier, logged, padded_rows, token_rows, trained, trainer
from tests.training.oracle import Draws, balanced_surrogate, gradients_of, hinge, moduli, paper_term, states

EXACT = {"rtol": 1e-7, "atol": 1e-12}
ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0, "spectrum": False, "per_device_train_batch_size": 8}


def exact_gpt2(**changes):
    """Float64 and no dropout, so that a run can be computed again."""
    return livelier(gpt2(dropout=0.0, **changes)).double()


@pytest.mark.parametrize(("rank", "first"), [(4, 1.0), (16, 1.0), (16, 0.1)])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_gradients_of_a_training_step_are_the_oracles(schedule, fraction, rank, first, tmp_path, monkeypatch):
    model, same, kept = exact_gpt2(), exact_gpt2(), Gradients()
    draws = Draws(monkeypatch, model)
    kss = {"kss_schedule": schedule, "kss_layer_fraction": fraction, "kss_rank": rank, "kss_first_block_weight": first}
    run = trained(tmp_path, model, padded_rows(8), callbacks=[kept], **ONE_STEP, **kss)

    (batch,), (directions,), (chosen,) = draws.batches, draws.directions, draws.chosen
    assert len(chosen) == (3 if fraction == 1 else 2)
    seen, output = states(same, same.transformer.h, batch)
    given = (batch["attention_mask"], directions, chosen, run.kss)
    if schedule == "paper":
        added = paper_term(seen, *given)
        assert logged(run, "loss")[0] == pytest.approx(float(output.loss + added), rel=1e-5)
    else:
        added = balanced_surrogate(seen, output.loss, *given)
        assert logged(run, "loss")[0] == pytest.approx(float(output.loss), rel=1e-5)
    want = gradients_of(output.loss + added, same)
    plain = gradients_of(states(same, same.transformer.h, batch)[1].loss, same)
    assert kept.steps[0].keys() == want.keys()
    for name, gradient in kept.steps[0].items():
        torch.testing.assert_close(gradient, want[name], **EXACT)
    # The comparison means something: KSS is a good part of the gradient, and comes in no layer after the last block.
    first = "transformer.h.0.mlp.c_fc.weight"
    assert float((want[first] - plain[first]).norm() / plain[first].norm()) > 0.01
    assert torch.equal(kept.steps[0]["transformer.ln_f.weight"], plain["transformer.ln_f.weight"])


def test_gradients_at_the_hidden_states(monkeypatch):
    """The same where it is made: at each state, the task's gradient plus the scaled one of the penalty."""
    model, same = exact_gpt2(), exact_gpt2()
    draws = Draws(monkeypatch, model)
    rows = padded_rows(6).rows
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    config = KSSConfig(rank=8, upper_threshold=ALWAYS)
    with SpectralShaper(model, config) as kss:
        seen, output = states(model, model.transformer.h, batch)
        for state in seen:
            state.retain_grad()
        output.loss.backward()
        assert float(kss.term()) == 0
    want, again = states(same, same.transformer.h, batch)
    added = balanced_surrogate(want, again.loss, batch["attention_mask"], draws.directions[0], draws.chosen[0], config)
    expected = torch.autograd.grad(again.loss + added, want, retain_graph=True)
    task = torch.autograd.grad(again.loss, want)
    for state, gradient, plain in zip(seen, expected, task, strict=True):
        torch.testing.assert_close(state.grad, gradient, **EXACT)
        assert not torch.allclose(gradient, plain, rtol=1e-2, atol=0)
    # The bound, at the end of the stream where one layer alone has acted: weight times the task's, for each sequence.
    sizes = (seen[-1].grad - task[-1]).flatten(1).norm(dim=1) / task[-1].flatten(1).norm(dim=1)
    assert float(sizes.max()) <= config.weight * (1 + 1e-9)


@pytest.mark.parametrize("schedule", ["balanced", "paper"])
def test_penalty_falls_when_kss_alone_acts(schedule, monkeypatch):
    """The task's gradient is taken out again, so what moves the weights is KSS. The penalty of the oracle is watched."""
    model = exact_gpt2()
    draws = Draws(monkeypatch, model)
    batch = {name: torch.stack([row[name] for row in token_rows(8).rows]) for name in ("input_ids", "labels")}
    settings = {"every": 1, "layer_fraction": 1.0, "first_block_weight": 1.0}
    settings |= {"near_unit_weight": 0.0} if schedule == "paper" else {}
    config = KSSConfig(schedule, rank=8, upper_threshold=ALWAYS, **settings)
    mask = torch.ones_like(batch["input_ids"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03 if schedule == "balanced" else 0.3)
    seen_penalties = []
    for _ in range(25):
        with SpectralShaper(model, config) as kss:
            seen, output = states(model, model.transformer.h, batch)
            (output.loss + kss.term()).backward()
        seen_penalties.append(
            sum(
                float(hinge(moduli(seen[i], seen[i + 1], v, mask, config).detach(), config))
                for i, v in enumerate(draws.directions[-1])
            )
        )
        task = gradients_of(model(**batch).loss, model)
        for name, parameter in model.named_parameters():
            parameter.grad -= task[name]
        optimizer.step()
        optimizer.zero_grad()
    assert seen_penalties[0] > 0.1
    assert seen_penalties[-1] < 0.5 * seen_penalties[0]


def test_strength_comes_with_the_excess(tmp_path):
    """Just below a threshold nothing is added, just above it little."""
    model, kept = exact_gpt2(), Gradients()
    run = trained(tmp_path, model, token_rows(8), callbacks=[kept], **ONE_STEP, learning_rate=0.0, kss_rank=16)
    radius = logged(run, "kss/spectral_radius/max")[0]

    def difference(threshold):
        with_it, without = Gradients(), Gradients()
        for keeper, kss in ((with_it, True), (without, False)):
            settings = {"kss_upper_threshold": threshold, "kss": kss, "kss_rank": 16}
            trained(tmp_path, exact_gpt2(), token_rows(8), callbacks=[keeper], **ONE_STEP, **settings)
        return max(float((with_it.steps[0][n] - g).norm() / g.norm()) for n, g in without.steps[0].items() if g.any())

    assert difference(radius * 1.001) == 0
    assert 0 < difference(radius * 0.999) < 0.01
    assert difference(ALWAYS) > 0.05


STEPS = {"max_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_grad_norm": 0.0}
# Rate 0: all steps see the same weights. 12 rows are 3 microbatches, so the second step has only one.
QUIET = {"learning_rate": 0.0, "spectrum": False}
PAPER = {"kss_schedule": "paper", "kss_every": 1}


class TestAccumulation:
    """The term is weighted alike however Trainer scales the loss: its gradient is the mean of the microbatches' terms."""

    @staticmethod
    def own_loss(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        return loss / num_items_in_batch

    def run(self, how, folder, kss, monkeypatch=None):
        model, kept = exact_gpt2(), Gradients()
        extra = {"compute_loss_func": self.own_loss} if how == "compute_loss_func" else {}
        extra |= {"label_smoothing_factor": 0.1} if "smoothing" in how else {}
        if "refuses" in how:
            model.accepts_loss_kwargs = False
        draws = Draws(monkeypatch, model) if monkeypatch else None
        settings = STEPS | QUIET | PAPER | {"kss": kss} | extra
        run = trainer(folder, model, padded_rows(12), callbacks=[kept], **settings)
        if "said" in how:
            run.loss_is_scaled_for_ga = how == "said to be scaled"
        run.train()
        return run, kept.steps, draws

    @pytest.mark.parametrize(
        "how",
        [
            "accepts loss kwargs",
            "refuses loss kwargs",
            "compute_loss_func",
            "smoothing, accepts",
            "smoothing, refuses",
            "said to be scaled",
            "said not to be scaled",
        ],
    )
    def test_contribution_is_the_mean_of_the_microbatches(self, how, tmp_path, monkeypatch):
        plain, without, _ = self.run(how, tmp_path / "plain", kss=False)
        run, with_kss, draws = self.run(how, tmp_path / "kss", kss=True, monkeypatch=monkeypatch)
        assert len(draws.batches) == 3
        same = exact_gpt2()
        terms = []
        for batch, directions, chosen in zip(draws.batches, draws.directions, draws.chosen, strict=True):
            seen, _ = states(same, same.transformer.h, {k: v for k, v in batch.items() if k != "num_items_in_batch"})
            terms.append(paper_term(seen, batch["attention_mask"], directions, chosen, run.kss))
        for step, mean in enumerate([(terms[0] + terms[1]) / 2, terms[2]]):
            want = gradients_of(mean, same)
            for name, gradient in want.items():
                got = with_kss[step][name] - without[step][name]
                torch.testing.assert_close(got, gradient, rtol=1e-6, atol=1e-9 * float(gradient.abs().max() + 1))
            assert logged(run, "kss/task_loss")[step] == pytest.approx(logged(plain, "loss")[step], rel=1e-5)
            total = logged(plain, "loss")[step] + float(mean.detach())
            assert logged(run, "loss")[step] == pytest.approx(total, rel=1e-5)

    def test_task_loss_over_several_steps(self, tmp_path):
        """Logged every third step, and KSS only every second: the means of both are taken over the same steps."""
        settings = STEPS | QUIET | PAPER | {"max_steps": 9, "logging_steps": 3, "kss_every": 2}
        plain = trained(tmp_path / "plain", exact_gpt2(), padded_rows(24), **settings | {"kss": False})
        run = trained(tmp_path / "kss", exact_gpt2(), padded_rows(24), **settings)
        assert logged(run, "kss/task_loss") == pytest.approx(logged(plain, "loss"), rel=1e-5)
        assert all(a > b for a, b in zip(logged(run, "loss"), logged(plain, "loss"), strict=True))

    def test_balanced_does_not_depend_on_the_scale_of_the_loss(self, tmp_path):
        """KSS's part of the gradient scales with the task's: a loss 100 times as large has a gradient 100 times as large."""

        def run(factor):
            def loss(outputs, labels, num_items_in_batch=None):
                return factor * self.own_loss(outputs, labels, num_items_in_batch)

            kept = Gradients()
            settings = STEPS | QUIET | {"max_steps": 1}
            trained(tmp_path, exact_gpt2(), padded_rows(12), callbacks=[kept], compute_loss_func=loss, **settings)
            return kept.steps[0]

        one, hundred = run(1.0), run(100.0)
        for name in one:
            torch.testing.assert_close(100 * one[name], hundred[name], rtol=1e-9, atol=1e-12)

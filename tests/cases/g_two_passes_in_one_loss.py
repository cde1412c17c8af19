"""A user's loss runs the model twice in one ``compute_loss`` (pairs of texts), with the mixin on top and ``schedule="paper"``.

What happens afterwards: the term of both passes reaches the gradient, so that the order of the two passes does not matter; or a
warning says that only one counts.
"""

from common import *
from hf_rksp import RKSPTrainerMixin


class Pairs(Trainer):
    order = (0, 1)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        halves = [{key: value[part::2] for key, value in inputs.items()} for part in (0, 1)]
        losses = {part: model(**halves[part]).loss for part in self.order}
        return losses[0] + losses[1]


class First(RKSPTrainerMixin, Pairs):
    order = (0, 1)


class Second(RKSPTrainerMixin, Pairs):
    order = (1, 0)


def model():
    net = gpt2()
    with torch.no_grad():
        for p in net.transformer.h.parameters():
            p.mul_(3)
    return net


def weights(cls, weight):
    given = {"kss": kss(schedule="paper", every=1, rank=16, layer_fraction=1.0, weight=weight), "monitor": False}
    return train(
        cls,
        model(),
        text_row(),
        given=given,
        max_steps=2,
        per_device_train_batch_size=16,
        optim="sgd",
        learning_rate=0.1,
    ).weights


def main(expect):
    one, two, off = (attempt(lambda c=c, w=w: weights(c, w)) for c, w in ((First, 1.0), (Second, 1.0), (First, 0.0)))
    if not expect(one.ran and two.ran and off.ran, f"{one}; {two}; {off}"):
        return
    acts, apart = (one.value - off.value).abs().max(), (one.value - two.value).abs().max()
    expect(acts > 0, "KSS changes nothing at all")
    said = one.warned("pass", "compute_loss", "forward")
    expect(
        apart <= 0.02 * acts or said,
        f"KSS moves weights by {acts:.1e}; the order of the passes by {apart:.1e}, and nothing was said",
    )


run("G", main)

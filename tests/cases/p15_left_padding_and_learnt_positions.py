"""A user profiles GPT-2 on left-padded texts and passes no ``position_ids``. The model then counts positions from the padding.

What happens afterwards: the profile comes with a warning that speaks of left padding or ``position_ids``; with
``position_ids`` it comes without one, and is the profile of the same texts padded on the right. ``check_model`` finds the trap.
"""

from common import *

LENGTHS = [32 - 6 * (i % 4) for i in range(16)]


def model():
    """Positions matter and blocks do something, as after training."""
    net = gpt2(head=False).eval()
    with torch.no_grad():
        net.wpe.weight.mul_(40)
        net.wte.weight.mul_(40)
        for p in net.h.parameters():
            p.mul_(12) if p.ndim > 1 else p
    return net


def main(expect):
    x = ids(16, 32)
    right = torch.stack([(torch.arange(32) < n).long() for n in LENGTHS])
    left = right.flip(1)
    moved = torch.stack([torch.cat([torch.zeros(32 - n).long(), row[:n]]) for row, n in zip(x, LENGTHS, strict=True)])
    positions = (left.cumsum(-1) - 1).clamp(min=0)
    radius = lambda batch: [layer.spectral_radius for layer in profile(model(), batch, rank=16)]
    usual = radius({"input_ids": x * right, "attention_mask": right})
    bare = attempt(lambda: radius({"input_ids": moved, "attention_mask": left}))
    expect(
        bare.warned("left", "position_ids") or (bare.refused and "position" in bare.text),
        f"left-padded: {bare}, no word of it; radius {bare.value}, right-padded {usual}",
    )
    told = attempt(lambda: radius({"input_ids": moved, "attention_mask": left, "position_ids": positions}))
    same = told.ran and all(abs(a - b) < 1e-3 * b for a, b in zip(told.value, usual, strict=True))
    expect(same and not told.warned("left"), f"with position_ids: {told}, {told.value}, right-padded {usual}")
    found = hf_rksp.check_model(model(), x)
    expect(any(not row.agrees for row in found), f"check_model: all agree {[row.check for row in found]}")


run("P15", main)

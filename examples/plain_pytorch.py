"""KSS in a loop of your own: no Trainer, with or without accelerate.

python examples/plain_pytorch.py
accelerate launch --multi_gpu --num_processes 2 examples/plain_pytorch.py --cpu
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from hf_rksp import KSSConfig, SpectralShaper
from hf_rksp.inputs.text import TextSource, read_text

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--text", default="builtin", help="text file, folder, dataset on the Hub, or builtin")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--schedule", default="balanced", choices=["balanced", "paper"])
parser.add_argument("--cpu", action="store_true")
parser.add_argument("--out", type=Path, help="folder to save the model in")
args = parser.parse_args()

accelerator = Accelerator(cpu=args.cpu)
data = torch.tensor(list(read_text(TextSource(args.text), 100_000).encode()[:400_000]))
rows = torch.utils.data.TensorDataset(data[: len(data) // 64 * 64].reshape(-1, 64))
loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=128, n_head=4, vocab_size=256, n_positions=64, eos_token_id=0))
optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
inner = model  # the module that owns the blocks, whatever is wrapped around it
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
accelerator.print(f"world size {accelerator.num_processes}")

model.train()
step = 0
with SpectralShaper(inner, KSSConfig(schedule=args.schedule)) as kss:
    while step < args.steps:
        for (ids,) in loader:
            loss = model(input_ids=ids, labels=ids).loss
            accelerator.backward(loss + kss.term())  # the balanced schedule acts in the backward pass, its term is 0
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            kss.step()
            step += 1
            if step % 10 == 0:
                spectrum = " ".join(f"{name} {value:.3g}" for name, value in kss.pop_logs().items())
                accelerator.print(f"step {step} loss {loss.item():.3f} {spectrum}")
            if step == args.steps:
                break
if args.out and accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(args.out)

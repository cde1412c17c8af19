"""What the guard says of the runs, from the losses and gradient norms in their rows: a change of its rule needs no new run.

python -m scripts.reproduce.lead_time.replay
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hf_rksp.files import put_file
from scripts.reproduce.lead_time.tools import GUARD, Tools

ROWS = Path(__file__).parent / "results.jsonl"


def guarded(row: dict[str, Any]) -> dict[str, list[int]]:
    """The alarms of the guard in a run, by multiple of its threshold."""
    tools = Tools([GUARD])
    for step, values in enumerate(zip(row["losses"], row["norms"], strict=True)):
        loss, norm = (math.inf if value is None else value for value in values)  # what is not finite stands as None
        tools.step(step, loss, norm, {})
    return tools.alarms[GUARD]


def main() -> None:
    """Write the rows again."""
    rows = [json.loads(text) for text in ROWS.read_text("utf-8").splitlines()]
    for row in tqdm(rows, unit="run"):
        row["tools"][GUARD] = guarded(row)
    put_file(ROWS, "".join(json.dumps(row) + "\n" for row in rows).encode())


if __name__ == "__main__":
    main()

"""Make zoo_reports/evidence from the rows in this repository: `python scripts/reproduce/render.py`. Equal rows give equal bytes."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hf_rksp.files import put_files  # noqa: E402
from scripts.reproduce.evidence.alignment import ALIGNMENT  # noqa: E402
from scripts.reproduce.evidence.claim import experiment_settings, rows_of  # noqa: E402
from scripts.reproduce.evidence.curvature import CURVATURE  # noqa: E402
from scripts.reproduce.evidence.ours import OURS  # noqa: E402
from scripts.reproduce.evidence.page import VERDICTS, figure, judge, markdown  # noqa: E402
from scripts.reproduce.evidence.rksp import RKSP  # noqa: E402
from scripts.reproduce.highest_rate.figure import picture as highest_rate  # noqa: E402
from scripts.reproduce.highest_rate.tables import with_grid  # noqa: E402
from scripts.reproduce.kss_families.figure import picture as kss_families  # noqa: E402
from scripts.reproduce.lead_time.figure import figure as who_warns_first  # noqa: E402
from scripts.reproduce.lead_time.tables import with_thresholds  # noqa: E402
from scripts.reproduce.paper_models.figure import picture as paper_models  # noqa: E402
from scripts.reproduce.published.figure import picture as published  # noqa: E402

PAPERS = (RKSP, ALIGNMENT, CURVATURE)
FOLDER = ROOT / "zoo_reports" / "evidence"


def files() -> dict[str, bytes]:
    """Name in the folder -> content."""
    judged, ours = judge(PAPERS), judge((OURS,))
    made = {"README.md": markdown(judged, ours).encode(), "figures/claims.svg": figure(judged).document().encode()}
    if runs := with_thresholds(rows_of("lead_time")):
        every = experiment_settings("lead_time")["every"]
        made["figures/who_warns_first.svg"] = who_warns_first(runs, every).document().encode()
    if rows := rows_of("kss_families"):
        made["figures/kss_families.svg"] = kss_families(rows).document().encode()
    if rows := rows_of("paper_models"):
        made["figures/paper_models.svg"] = paper_models(rows).document().encode()
    if rows := rows_of("highest_rate"):
        of = experiment_settings("highest_rate")
        made["figures/highest_rate.svg"] = highest_rate(with_grid(rows, of), of).document().encode()
    if rows := rows_of("published"):
        made["figures/published.svg"] = published(rows, experiment_settings("published")).document().encode()
    return made


def main() -> int:
    """Write what has changed, and print the verdicts."""
    (FOLDER / "figures").mkdir(parents=True, exist_ok=True)
    put_files(files(), FOLDER)
    for paper, claims in judge((*PAPERS, OURS)):
        print(paper.name)
        for claim, finding in claims:
            print(f"  {VERDICTS[finding.verdict]:16} {claim.place:20} {claim.says}")
    print(f"{FOLDER / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

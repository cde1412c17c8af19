"""Build the wheel and the sdist, install each in a fresh environment, and use it there: ``make wheel``.

The environment gets the versions of constraints.txt. A project of a user is run and checked by mypy with --strict.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "tests/user_project/train.py"
#: What the package cannot work without and a build may forget.
_DATA = (
    "hf_rksp/py.typed",
    "hf_rksp/paper.json",
    "hf_rksp/risk/model.json",
    "hf_rksp/report/run/templates/",
    "hf_rksp/zoo/pages/templates/",
)


def run(*command: object, **more: object) -> str:
    """Run a command; what it printed is in the error if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return str(done.stdout)


def build(out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, the latter from a clean copy of what git knows."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("hf_rksp-*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as name:
        archive = Path(name, "source.tar")
        run("git", "-C", ROOT, "archive", "-o", archive, "HEAD")
        with tarfile.open(archive) as source:
            source.extractall(Path(name, "source"), filter="data")
        run(sys.executable, "-m", "build", "--outdir", out, Path(name, "source"))
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """All data is in both, and nothing but the package is in the wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        inside = ["/".join(name.split("/")[1:]) for name in archive.getnames()]
    for part in _DATA:
        for where, found in ((wheel, names), (sdist, inside)):
            if not any(name.startswith(part) for name in found):
                sys.exit(f"{where.name}: {part} is missing")
    if strange := [name for name in names if not name.startswith(("hf_rksp/", "hf_rksp-"))]:
        sys.exit(f"{wheel.name}: {strange[0]} does not belong there")


def check_installed(file: Path, types: bool) -> None:
    """Install in a fresh environment, and use what is installed from a folder without the source."""
    with tempfile.TemporaryDirectory() as name:
        venv.create(Path(name, "v"), with_pip=True)
        python = Path(name, "v/bin/python")
        run(
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "-c",
            ROOT / "constraints.txt",
            file,
            *(["mypy"] if types else []),
        )
        script = Path(name, "train.py")
        script.write_text(PROJECT.read_text())
        version = run(python.with_name("rksp"), "--version", cwd=name).strip()
        print(f"{file.name}: rksp {version.split()[-1]}")
        run(
            python.with_name("rksp"),
            "audit",
            "--init",
            "gpt2",
            "--config-overrides",
            "n_layer=2",
            "--tokens",
            "2048",
            "--out",
            Path(name, "audit"),
            cwd=name,
        )
        print(f"{file.name}: a project that uses it prints {run(python, script, cwd=name).strip()}")
        if types:
            print(f"{file.name}: mypy --strict: {run(python, '-m', 'mypy', '--strict', script, cwd=name).strip()}")


def main() -> None:
    """Build, look, install, use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out/dist", help="folder of the two files")
    wheel, sdist = build(parser.parse_args().out.absolute())
    check_contents(wheel, sdist)
    check_installed(wheel, types=True)
    check_installed(sdist, types=False)
    print(f"done: {wheel}, {sdist}")


if __name__ == "__main__":
    main()

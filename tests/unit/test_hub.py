"""Publishing: the right files go to the right repository, and a refusal keeps the report."""

import pytest

from hf_rksp.errors import OutputError
from hf_rksp.report.profile import hub

DATA = {"profile": {"model": {"name": "gpt2", "source": "pretrained", "path": "openai-community/gpt2"}}}


class Api:
    def __init__(self):
        self.calls = {}

    def create_repo(self, repo, **kw):
        self.calls["create"] = (repo, kw)
        return f"https://hub/datasets/{repo}"

    def upload_file(self, **kw):
        self.calls["card"] = kw

    def upload_folder(self, **kw):
        self.calls["folder"] = kw


def test_push(monkeypatch, tmp_path):
    api = Api()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    (tmp_path / "report.md").write_text("# the report\n")
    assert hub.push_report(tmp_path, DATA, "me/r", private=True) == "https://hub/datasets/me/r"
    assert api.calls["create"] == ("me/r", {"repo_type": "dataset", "private": True, "exist_ok": True})
    card = api.calls["card"]["path_or_fileobj"].decode()
    assert card.startswith("---\n") and "- openai-community/gpt2" in card and card.endswith("# the report\n")
    assert "report.json" in api.calls["folder"]["allow_patterns"]


def test_offline_refusal_names_the_folder(tmp_path):
    with pytest.raises(OutputError, match=r"push_to_hub='me/r' failed: .* push again") as error:
        hub.push_report(tmp_path, DATA, "me/r")
    assert str(tmp_path) in str(error.value)

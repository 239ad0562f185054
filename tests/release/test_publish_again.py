"""What is published after the first time: a withdrawal, a changed card, a signature."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cli.running import KARMA
from tests.release.publish_worker import REPOSITORY
from tests.release.publishing import CANDIDATE, REPO, Scene


def verified(scene: Scene, folder: Path, revision: str) -> dict[str, object]:
    """What `karma verify ORG/NAME` finds, asked from `folder`."""
    folder.mkdir(exist_ok=True)
    done = scene.worker.karma("verify", REPO, "--revision", revision, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    found: dict[str, object] = json.loads(done.stdout)
    assert found["valid"] is True
    return found


def test_what_is_published_is_verified_from_an_empty_folder_and_yanked(
    fresh: Scene, private_key: Path, tmp_path: Path
) -> None:
    assert fresh.publish("pass", "--key", private_key).returncode == 0
    published = fresh.tagged()
    found = verified(fresh, tmp_path / "empty", "main")
    assert (found["yanked"], found["tag"], found["verdict"]) == (None, "v8", "pass")
    refused = fresh.publish("pass", "--yank", "v8", "--reason", "it lies")
    assert refused.returncode == 1
    assert "--key" in refused.stderr
    assert fresh.publish("pass", "--yank", "v7", "--reason", "x").returncode == 1
    for says in ("is yanked", "nothing to do"):
        done = fresh.publish("pass", "--yank", "v8", "--reason", "it lies", "--key", private_key)
        assert done.returncode == 0, done.stderr
        assert says in done.stderr
    assert fresh.tagged() == published
    assert published is not None
    assert set(fresh.main()) == {*published, "yanked.json"}
    for revision in ("v8", "main"):
        assert verified(fresh, tmp_path / "empty", revision)["yanked"] == "it lies"
    assert "nothing to do" in fresh.publish("pass", "--key", private_key).stderr


def test_a_candidate_is_yanked_by_its_tag_and_its_release_is_not(
    fresh: Scene, private_key: Path, tmp_path: Path
) -> None:
    """The candidate on the hub and the release have the same version, and each its tag."""
    done = fresh.publish("fail", *CANDIDATE, "--key", private_key)
    assert done.returncode == 0, done.stderr
    candidate = fresh.repo.commit_of("main")
    assert fresh.publish("pass", "--key", private_key).returncode == 0
    done = fresh.publish("pass", "--yank", "v8-candidate", "--reason", "it fails", "--key", private_key)
    assert done.returncode == 0, done.stderr
    for revision, tag, reason in (
        ("v8", "v8", None),
        (candidate, "v8-candidate", "it fails"),
        ("main", "v8", None),
    ):
        found = verified(fresh, tmp_path / "empty", revision)
        assert (found["tag"], found["yanked"]) == (tag, reason)
    folder = tmp_path / "candidate"
    words = ("verify", REPO, "--revision", candidate, "--output", folder)
    done = fresh.worker.karma(*words, folder=tmp_path)
    assert done.stdout.startswith("valid, yanked: it fails\ntiny v8-candidate: "), done.stderr
    done = fresh.publish("pass", "--yank", "v8", "--reason", "it lies", "--key", private_key)
    assert done.returncode == 0, done.stderr
    assert verified(fresh, tmp_path / "empty", "v8")["yanked"] == "it lies"
    assert verified(fresh, tmp_path / "empty", candidate)["yanked"] == "it fails"
    assert fresh.card().count("is yanked:") == 2


def changed_since(scene: Scene, before: dict[str, dict[str, object]]) -> set[str]:
    after = scene.main()
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def test_a_changed_reason_is_a_new_card_and_moves_no_tag(fresh: Scene) -> None:
    before, tags = fresh.main(), fresh.repo.refs()["tags"]
    words = ("--candidate", "--reason", "to look at four things")
    done = fresh.publish("fail", *words)
    assert (done.returncode, done.stdout) == (0, f"{REPO} v8-candidate {fresh.repo.commit_of('main')}\n"), done.stderr
    assert "shown anew" in done.stderr
    assert "to look at four things" in fresh.card()
    assert changed_since(fresh, before) == {"README.md", "manifest.json", "provenance.json"}
    assert fresh.repo.refs()["tags"] == tags
    done = fresh.publish("fail", *words)
    assert "nothing to do" in done.stderr


def test_a_changed_template_of_the_card_is_published(fresh: Scene, tmp_path: Path) -> None:
    """By a copy of this library whose template has a sentence more; the release itself was built before."""
    assert fresh.publish("pass").returncode == 0
    before, tags = fresh.main(), fresh.repo.refs()["tags"]
    shutil.copytree(REPOSITORY / "karma_electric", tmp_path / "karma_electric")
    template = tmp_path / "karma_electric/release/templates/model-card.md.jinja"
    template.write_text(template.read_text("utf-8").replace("## Files\n", "Read this first.\n\n## Files\n"), "utf-8")
    command = [sys.executable, "-m", "karma_electric.cli.main", "publish", "--repo", REPO]
    for says in ("v8 is shown anew", "nothing to do"):
        done = subprocess.run(
            command,
            cwd=fresh.root / "pass",
            env=fresh.environment | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert says in done.stderr
    assert "Read this first." in fresh.card()
    assert changed_since(fresh, before) == {"README.md", "manifest.json"}
    assert fresh.repo.refs()["tags"] == tags


def test_a_card_is_not_put_back_over_a_later_release(fresh: Scene) -> None:
    """Main shows the release, so the candidate's card is of no concern, whatever it would be now."""
    assert fresh.publish("pass").returncode == 0
    refs = fresh.repo.refs()
    done = fresh.publish("fail", "--candidate", "--reason", "to look at five things")
    assert (done.returncode, fresh.repo.refs()) == (0, refs), done.stderr
    assert "nothing to do" in done.stderr


def test_a_signature_can_be_added_and_not_be_lost(fresh: Scene, private_key: Path, tmp_path: Path) -> None:
    assert fresh.publish("pass").returncode == 0
    done = fresh.publish("pass", "--key", private_key)
    assert done.returncode == 0, done.stderr
    assert verified(fresh, tmp_path / "empty", "main")["signed_by"] == "public-key.pem"
    assert "nothing to do" in fresh.publish("pass").stderr
    done = fresh.publish("fail", "--candidate", "--reason", "again", "--repo", REPO)
    assert "nothing to do" in done.stderr
    signed = fresh.repo.refs()
    done = fresh.publish("fail", "--yank", "v8", "--reason", "x")
    assert (done.returncode, fresh.repo.refs()) == (1, signed)
    assert "is signed, so its next commit must be" in done.stderr


def test_without_an_identity_nothing_is_published_keyless(fresh: Scene) -> None:
    refs = fresh.repo.refs()
    done = subprocess.run(
        [str(KARMA), "publish", "--repo", REPO, "--keyless"],
        cwd=fresh.root / "pass",
        env=fresh.environment | {"SIGSTORE_ID_TOKEN": "no-such-token"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, fresh.repo.refs()) == (2, refs), done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: keyless signing failed")
    assert "no-such-token" not in done.stderr
    assert not {"preupload", "commit"} & set(fresh.server.faults.seen)

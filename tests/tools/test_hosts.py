"""Which ComfyUI is used, and what is said if none can be had."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from reins.tests.tools.places import ROOT, make_host
from reins.tools import hosts
from reins.tools.screen import DevError


def test_the_order_of_hosts_is_named_located_cached_cloned_and_the_registrys(cache, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(hosts, "clone_host", lambda: asked.append("clone") or [])
    monkeypatch.setattr(hosts, "fetch", lambda host: asked.append(host.version) or make_host(cache / "ComfyUI-0.30.0"))
    assert [host.version for host in hosts.find_hosts()] == [(0, 30, 0)]
    assert asked == ["clone", "0.30.0"]
    make_host(cache / "ComfyUI-0.8.0", "0.8.0")
    assert [host.version for host in hosts.find_hosts()] == [(0, 30, 0), (0, 8, 0)]
    located = hosts.Host(make_host(tmp_path / "round", "0.3.64"), (0, 3, 64), "located")
    monkeypatch.setattr(hosts, "located_hosts", lambda: [located])
    assert hosts.find_hosts() == [located]
    named = make_host(tmp_path / "named", "0.9")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert [host.path for host in hosts.find_hosts()] == [named]
    assert asked == ["clone", "0.30.0"]  # nothing is fetched if there is one


def test_with_hosts_the_tests_run_on_the_three_of_the_registry_and_on_what_the_cache_holds(cache, monkeypatch):
    make_host(cache / "ComfyUI-0.40.0", "0.40.0")
    monkeypatch.setattr(hosts, "fetch", lambda host: make_host(cache / f"ComfyUI-{host.version}", host.version))
    found = [".".join(map(str, host.version)) for host in hosts.find_test_hosts()]
    assert found == ["0.40.0", "0.30.0", "0.16.3", "0.3.75"]


def test_an_empty_cache_gets_the_newest_tested_comfyui_before_those_of_the_registry(cache, monkeypatch):
    def clone() -> list[hosts.Host]:
        path = make_host(cache / f"ComfyUI-{hosts.HOST_VERSION}", hosts.HOST_VERSION)
        return [hosts.Host(path, hosts.version_of(path), "cached")]

    monkeypatch.setattr(hosts, "clone_host", clone)
    monkeypatch.setattr(hosts, "fetch", lambda host: make_host(cache / f"ComfyUI-{host.version}", host.version))
    found = hosts.find_test_hosts()
    assert [host.version for host in found][:2] == [hosts.numbers(hosts.HOST_VERSION), (0, 30, 0)]
    assert len(found) == 4


def test_if_none_can_be_had_the_message_says_which_ways_are_left(cache, monkeypatch):
    def fail(host):
        raise DevError("there is no network")

    monkeypatch.setattr(hosts, "clone_host", list)
    monkeypatch.setattr(hosts, "fetch", fail)
    with pytest.raises(DevError, match=r"there is no network\n.+COMFYUI_PATH.+custom_nodes"):
        hosts.find_hosts()


def test_a_folder_that_is_no_comfyui_is_refused_by_name(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(DevError, match=rf"{tmp_path.name}, which is not a ComfyUI folder: it has no comfy/, main"):
        hosts.find_hosts()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(DevError, match=r"nowhere, which is not a ComfyUI folder: it does not exist\. Name a folder"):
        hosts.find_hosts()


def test_without_a_git_host_git_says_why_and_nothing_is_left_behind(cache, monkeypatch, capsys):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setattr(hosts, "HOST_REPOSITORY", "http://127.0.0.1:9/nowhere")
    assert hosts.clone_host() == []
    said = capsys.readouterr().out
    assert "ComfyUI cannot be cloned from http://127.0.0.1:9/nowhere: " in said
    assert "network" not in said.replace("/nowhere", "").partition("fatal")[0]
    assert not list(cache.iterdir())


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with the tag that is cloned."""
    folder = make_host(tmp_path / "upstream", hosts.HOST_VERSION)
    (folder / "comfy" / "ops.py").touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        [*identity, "commit", "-qm", "one"],
        ["tag", f"v{hosts.HOST_VERSION}"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    monkeypatch.setattr(hosts, "HOST_REPOSITORY", folder.as_uri())
    return folder


def test_a_clone_stands_under_its_version_and_nothing_else_is_left(cache, repository):
    (host,) = hosts.find_hosts()
    assert host == hosts.Host(cache / f"ComfyUI-{hosts.HOST_VERSION}", hosts.numbers(hosts.HOST_VERSION), "cached")
    assert {path.name for path in cache.iterdir()} == {host.path.name, "lock"}
    assert hosts.find_hosts() == [host]


def test_a_folder_in_the_way_of_a_clone_is_named(cache, repository):
    (cache / f"ComfyUI-{hosts.HOST_VERSION}" / "models").mkdir(parents=True)
    with pytest.raises(DevError, match="is in the way: it is no ComfyUI"):
        hosts.clone_host()


def test_a_checkout_linked_into_custom_nodes_uses_that_comfyui(tmp_path, monkeypatch):
    host = make_host(tmp_path / "ComfyUI")
    (host / "custom_nodes").mkdir()
    (host / "custom_nodes" / "linked").symlink_to(ROOT, target_is_directory=True)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(hosts.sys, "argv", ["dev.py"])
    monkeypatch.chdir(host / "custom_nodes" / "linked")
    monkeypatch.setenv("PWD", str(host / "custom_nodes" / "linked"))
    assert hosts.present_hosts() == [hosts.Host(host, (0, 30, 0), "located")]


@pytest.mark.parametrize("text", ['__version__ = "0.31.2"', "__version__ = '0.31.2'", '__version__ = "0.31.2.dev1"'])
def test_a_version_is_read_in_every_form(text, tmp_path):
    (tmp_path / "comfyui_version.py").write_text(f"# made\n{text}\n")
    assert hosts.version_of(tmp_path)[:3] == (0, 31, 2)


def test_several_named_hosts_may_have_spaces_and_empty_places_between_them(tmp_path, monkeypatch):
    folders = [make_host(tmp_path / "one of them"), make_host(tmp_path / "two")]
    monkeypatch.setenv("COMFYUI_PATH", os.pathsep.join([f" {folders[0]} ", "", str(folders[1]), ""]))
    assert [host.path for host in hosts.named_hosts()] == folders


def test_a_checkout_beside_a_comfyui_but_not_in_custom_nodes_is_not_located(tmp_path, monkeypatch):
    folder = make_host(tmp_path / "ComfyUI") / "somewhere" / "linked"
    folder.parent.mkdir()
    folder.symlink_to(ROOT, target_is_directory=True)
    monkeypatch.setattr(hosts.sys, "argv", [str(folder / "dev.py")])
    assert hosts.located_hosts() == []

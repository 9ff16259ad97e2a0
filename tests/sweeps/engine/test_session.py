"""Ray's own folder, where it belongs to somebody else."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from sparse_model.errors import InputError
from sweeps.engine.session import check_temporary_folder


def said_as_nobody(folder: str, said: str) -> None:
    os.environ["RAY_TMPDIR"] = folder
    os.setuid(65534)
    try:
        check_temporary_folder()
        text = ""
    except InputError as error:
        text = str(error)
    Path(said).write_text(text)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_temporary_folder_of_another_user_is_told_with_a_remedy(tmp_path: Path, mode: int) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to(tempfile.gettempdir()) and path != Path(tempfile.gettempdir()):
            path.chmod(0o755)
    (tmp_path / "tmp" / "ray").mkdir(parents=True)
    (tmp_path / "tmp" / "ray").chmod(mode)
    said = tmp_path / "said"
    said.touch()
    said.chmod(0o666)
    process = multiprocessing.get_context("fork").Process(
        target=said_as_nobody, args=(str(tmp_path / "tmp"), str(said))
    )
    process.start()
    process.join(30)
    assert process.exitcode == 0
    if mode == 0o777:
        assert said.read_text() == ""
    else:
        assert said.read_text().startswith(f"{tmp_path}/tmp/ray: belongs to user root")
        assert "RAY_TMPDIR" in said.read_text()

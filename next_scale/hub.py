"""Files of Hugging Face repositories, of the revision that is asked for."""

from __future__ import annotations

from pathlib import Path

from next_scale.errors import UserError, first_line


def hub_file(repository: str, name: str) -> Path:
    """A file of a repository, from the local cache or the network.

    Args:
        repository: ``owner/name``, or ``owner/name@revision``: a branch, a tag, or a commit, which never changes.
        name: of the file.

    Raises:
        UserError: the hub cannot be reached or has no such file.
    """
    from huggingface_hub import hf_hub_download

    owner_name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(owner_name, name, revision=revision or None))
    except Exception as error:  # whatever the network and its libraries raise
        cause = f"there is no folder {repository} here, and the hub did not give its {name}"
        raise UserError(f"{cause} ({first_line(error)}): download it elsewhere and name its folder") from error

"""Push the folder of a pipeline, or of another model, to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import read_bytes
from sashimi_diffusion.terminal import one_line, printable

CARD = "README.md"
"""Name of the card of a model."""
PLACEHOLDER = "OWNER/NAME"
"""What a card names until its folder is pushed. A pushed card has the id of the repository in its place."""


def check_push(name: str) -> str:
    """Check, before a long computation, that this user can push a model called ``name``; return its id ``owner/name``.

    Args:
        name: "owner/name", or "name" in the user's own account.

    Raises:
        UserError: the name is not possible, the hub is offline or cannot be reached, or the user is not logged in or
            does not belong to ``owner``.
    """
    shown = short_form(name)
    try:
        validate_repo_id(name)
    except ValueError:
        raise UserError(
            f"--push-to-hub {shown} is no name of a repository: expected NAME or OWNER/NAME of letters, digits, "
            "'-', '_' and '.'"
        ) from None
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(f"--push-to-hub {shown} needs the hub, but HF_HUB_OFFLINE is set: unset it, or push later")
    if huggingface_hub.get_token() is None:
        raise UserError(f"--push-to-hub {shown} needs an access token: run `hf auth login`, or set HF_TOKEN")
    try:
        user = HfApi().whoami()
    except Exception as error:  # its class depends on the version of huggingface_hub
        raise UserError(
            f"--push-to-hub {shown}: the hub did not accept the access token or cannot be reached ({one_line(error)}); "
            "correct it, or push later"
        ) from error
    owners = [user["name"], *(group["name"] for group in user.get("orgs", []))]
    owner, slash, _ = name.rpartition("/")
    if slash and owner not in owners:
        raise UserError(
            f"--push-to-hub {shown}: {printable(owner)} is not {printable(user['name'])} and none of the organizations "
            "of this account: choose another OWNER, or log in as that one"
        )
    return name if slash else f"{user['name']}/{name}"


def push_to_hub(folder: Path, repository: str, private: bool = False) -> str:
    """Upload the files of a folder to a repository, which is created if it does not exist; return its address.

    Args:
        folder: the folder of a model.
        repository: result of :func:`check_push`.
        private: whether a new repository is private.

    Raises:
        UserError: a file cannot be read, or the hub did not accept them.
    """
    operations = [
        CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=_content(path, repository))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        api.create_commit(repository, operations, commit_message="Upload the model", repo_type="model")
    except Exception as error:  # its class depends on the version of huggingface_hub
        raise UserError(
            f"{printable(folder)} was not pushed to {repository} ({one_line(error)}): push it later with "
            f"sashimi-push {printable(folder)} {repository}"
        ) from error
    return str(address)


def _content(path: Path, repository: str) -> str | bytes:
    """Return the path of a file to upload; of a card, its bytes with the id of the repository."""
    if path.name != CARD:
        return str(path)
    return read_bytes(path, "a model card").replace(PLACEHOLDER.encode(), repository.encode())

"""Pushing an export to the Hugging Face Hub: private unless asked, and the token never shown."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import disable_progress_bars

from trb_mlx.errors import RunError, UserError
from trb_mlx.interrupts import Interrupted


def check_repo(repo: str) -> None:
    """Refuse a name that cannot be a repository, before anything is exported.

    Raises:
        UserError: it is not OWNER/NAME.
    """
    refusal = UserError(f"--push {repo} is no repository name, expected OWNER/NAME.")
    if "/" not in repo:
        raise refusal
    try:
        validate_repo_id(repo)
    except hub_errors.HFValidationError as error:
        raise refusal from error


def push(folder: Path, repo: str, public: bool) -> str:
    """Upload a folder as one commit, making the repository where it does not exist.

    Args:
        folder: the export.
        repo: OWNER/NAME.
        public: whether a repository made here is public.

    Returns:
        The repository's address.

    Raises:
        RunError: the Hub refused or failed; the export is whole.
        Interrupted: a signal came; its advice says the same.
    """
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # retries are warnings there
    api = HfApi()
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Export {folder.name} by trb-mlx"
        )
    except Interrupted as error:
        error.advice = _sentence(repo, folder, "was interrupted")
        raise
    except Exception as error:  # whatever the client raises, the export is whole
        raise RunError(f"{_sentence(repo, folder, _reason(error))}.") from error
    return str(address)


def _sentence(repo: str, folder: Path, reason: str) -> str:
    command = shlex.join(["hf", "upload", repo, str(folder)])
    return (
        f"the push to {repo} {reason}; the export in {folder} is whole: give the same command "
        f"again, or `{command}`"
    )


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub_errors.LocalTokenNotFoundError) or status == 401:
        return "was refused for want of a valid token (`hf auth login`, or HF_TOKEN)"
    if status == 403:
        return "was refused: the token may not write there"
    if status is not None:
        return f"failed: the Hub answered {status}"
    token = get_token()
    text = " ".join(str(error).split()) or type(error).__name__
    return f"failed: {text.replace(token, '…') if token else text}"[:300]

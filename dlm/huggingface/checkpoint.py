"""Files beside the weights of a network: generation options and the tokenizer."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dlm.models.files import cached, read_json

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a network was loaded from."""

    name: str  # a folder or a Hugging Face id
    where: Mapping[str, Any]  # revision etc.; no access token, which must not be kept

    @classmethod
    def of(cls, name: str | os.PathLike[str], where: Mapping[str, Any]) -> Self:
        """Create from the arguments of `from_pretrained`."""
        kept = ("cache_dir", "local_files_only", "revision", "subfolder")
        stated = {k: where[k] for k in kept if where.get(k)}
        folder = Path(name)
        # Absolute, as files may be read after the working directory has changed.
        place = str(folder.absolute()) if folder.is_dir() else os.fspath(name)
        return cls(place, {k: v for k, v in stated.items() if v != "main"})

    def names(self) -> tuple[str, ...]:
        """Names of the checkpoint, the most specific first."""
        inside = self.where.get("subfolder")
        return (self.name,) if inside is None else (f"{self.name}/{inside}", self.name)

    def file(self, name: str, token: str | bool | None = None) -> str | None:
        """Path of a file of the checkpoint; None if it has none."""
        return cached(self.name, name, **self.where, token=token)

    def options(self, token: str | bool | None) -> dict[str, Any] | None:
        """Contents of `generation_config.json`; None if there is none.

        Raises:
            ValueError: the file is corrupt.
        """
        return read_json(self.name, "generation_config.json", **self.where, token=token)

    def folder(self) -> str:
        """Where the tokenizer is: a folder, or the checkpoint's id if nothing else is selected."""
        if not self.where:
            return self.name
        if Path(self.name).is_dir():
            return str(Path(self.name) / self.where.get("subfolder", ""))
        found = [path for path in map(self.file, TOKENIZER_FILES) if path is not None]
        return str(Path(found[0]).parent) if found else self.name

    def tokenizer(self, default: str | None) -> Any:
        """The tokenizer; None if there is none.

        Args:
            default: a Hugging Face id, for families whose checkpoints come without a tokenizer.

        Raises:
            ValueError: it cannot be read.
        """
        from dlm.models.tokenizers import read_tokenizer

        try:
            return read_tokenizer(self.folder(), default)
        except ValueError as error:
            raise ValueError(f"{error}; give one as tokenizer") from error

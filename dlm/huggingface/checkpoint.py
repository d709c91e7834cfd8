"""What lies beside the weights of a network: generation options and a tokenizer."""

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
    """Where a network was read."""

    name: str  # a folder or a Hugging Face id
    where: Mapping[str, Any]  # revision and the like; never a token, which must not be kept

    @classmethod
    def of(cls, name: str | os.PathLike[str], where: Mapping[str, Any]) -> Self:
        """Out of the arguments of `from_pretrained`."""
        kept = ("cache_dir", "local_files_only", "revision", "subfolder")
        stated = {k: where[k] for k in kept if where.get(k)}
        folder = Path(name)
        # Absolute, as its files may be read after a change of the working directory.
        place = str(folder.absolute()) if folder.is_dir() else os.fspath(name)
        return cls(place, {k: v for k, v in stated.items() if v != "main"})

    def names(self) -> tuple[str, ...]:
        """Names of the checkpoint, the most particular one first."""
        inside = self.where.get("subfolder")
        return (self.name,) if inside is None else (f"{self.name}/{inside}", self.name)

    def file(self, name: str, token: str | bool | None = None) -> str | None:
        """Where a file of the checkpoint is, None where it has none."""
        return cached(self.name, name, **self.where, token=token)

    def options(self, token: str | bool | None) -> dict[str, Any] | None:
        """What `generation_config.json` says, None where there is none.

        Raises:
            ValueError: it is corrupt.
        """
        return read_json(self.name, "generation_config.json", **self.where, token=token)

    def folder(self) -> str:
        """What holds the tokenizer: a folder, or the id where it is the default of that id."""
        if not self.where:
            return self.name
        if Path(self.name).is_dir():
            return str(Path(self.name) / self.where.get("subfolder", ""))
        found = [path for path in map(self.file, TOKENIZER_FILES) if path is not None]
        return str(Path(found[0]).parent) if found else self.name

    def tokenizer(self, default: str | None) -> Any:
        """The tokenizer, None where there is none.

        Args:
            default: a Hugging Face id for families whose checkpoints come without one.

        Raises:
            ValueError: it cannot be read.
        """
        from dlm.models.tokenizers import read_tokenizer

        try:
            return read_tokenizer(self.folder(), default)
        except ValueError as error:
            raise ValueError(f"{error}; give one as tokenizer") from error

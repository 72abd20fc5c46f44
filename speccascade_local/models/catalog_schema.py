"""The schema of a ``models.yaml``: its keys, their types, and which do not go together."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..common.endpoints import parse_endpoint
from ..common.errors import SettingError
from ..rules import registry
from .source import NGRAM, ModelEntry, Name

CALIBRATED = "calibrated:"


def _is_rule(text: str) -> str:
    """Check a rule as far as that runs no code and opens no file; loading the pair checks the rest."""
    if registry.is_custom(text) or text.startswith(CALIBRATED):
        return text
    try:
        return str(registry.parse(text))
    except SettingError as error:
        raise ValueError(str(error)) from None


def _is_address(text: str) -> str:
    try:
        return str(parse_endpoint(text))
    except SettingError as error:
        raise ValueError(str(error)) from None


class PairEntry(BaseModel):
    """One pair as it stands in the file. Paths are relative to the file's folder; ``bundled:NAME`` is inside this package."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: str = Field("", description="One line for 'speccascade models'.")
    family: Name | None = Field(None, description="The family that both models are of.")
    drafter: ModelEntry = Field(description="The small model; the word ngram: none, drafts are copied from the text.")
    expert: ModelEntry = Field(description="The large model.")
    rule: Annotated[str, AfterValidator(_is_rule)] | None = Field(None, description="The method that suits the pair, such as strict.")
    context: Annotated[int, Field(gt=0)] | None = Field(None, description="Tokens that both models were trained for.")
    source: Name | None = Field(None, description="Where the facts of this entry were seen.")
    rpc: list[Annotated[str, AfterValidator(_is_address)]] = Field([], description="Machines that share the expert, host:port each.")

    @model_validator(mode="after")
    def _check_ngram(self) -> PairEntry:
        if self.expert.file == NGRAM:
            raise ValueError("'ngram' copies and knows nothing; only the drafter may be")
        if self.drafter.file == NGRAM and self.drafter.model_fields_set != {"file"}:
            raise ValueError("drafter 'ngram' is no model, so it has no other keys; write drafter: ngram")
        return self


class CatalogFile(BaseModel):
    """The whole of a ``models.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, title="models.yaml of speccascade-local")

    pairs: dict[str, PairEntry] = Field(description="The pairs by name.")

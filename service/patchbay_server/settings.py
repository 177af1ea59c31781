"""What the operator decides, from options or from `PATCHBAY_*` environment variables. Read once, at start."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from patchbay.errors import InvalidRecipe
from patchbay_server.sizes import parse_size


def _size(given: object) -> object:
    """Sizes may be written as people write them."""
    if not isinstance(given, str):
        return given
    try:
        return parse_size(given, "size")
    except InvalidRecipe as error:
        raise ValueError(error.message) from error


DEFAULT_STORE = Path("patchbay-store")
Bytes = Annotated[int, BeforeValidator(_size)]


class Settings(BaseSettings):
    """Every field is an environment variable too: `api_key` is `PATCHBAY_API_KEY`."""

    model_config = SettingsConfigDict(env_prefix="PATCHBAY_", frozen=True, hide_input_in_errors=True)

    base: str = Field(description="Folder or hub id of the base model.")
    task: str | None = Field(default=None, description="What to serve; detected from the config when absent.")
    dtype: str = Field(default="auto", description="auto (as stored), bf16 or fp32.")
    device: str = Field(default="auto", description="auto, cpu or cuda.")
    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=0, le=65535)
    store: Path = Field(default=DEFAULT_STORE, description="Folder for blobs and the embedded catalog.")
    store_url: str | None = Field(
        default=None, description="sqlite:///... or redis://...; the embedded catalog by default."
    )
    blob_url: str | None = Field(
        default=None,
        description="file:///..., s3://..., gs://..., az://... or redis://...; in the store by default.",
    )
    blob_cache_bytes: Bytes = Field(default=16 << 30, ge=0, description="Files of remote blobs, kept in the store.")
    redis_blob_bytes: Bytes = Field(default=1 << 30, gt=0, description="Cap of all blobs in Redis together.")
    api_key: SecretStr | None = Field(default=None, description="The operator's key; others are in the catalog.")
    max_upload_bytes: Bytes = Field(default=8 << 30, gt=0)
    max_body_bytes: Bytes = Field(default=32 << 20, gt=0, description="Cap of every JSON body.")
    max_recording_bytes: Bytes = Field(default=64 << 20, gt=0, description="Cap of a body of /v1/eeg.")
    max_blob_bytes: Bytes = Field(default=64 << 30, gt=0, description="Cap of one blob.")
    replicas: int = Field(default=1, ge=1, le=64, description="Processes that each hold the base; over 1 with Ray.")
    workers: int = Field(default=1, ge=0, le=64, description="Processes for compression jobs; 0 leaves them to others.")
    jobs_db: Path | None = Field(
        default=None, description="The queue of jobs; in Redis with the catalog, else jobs.db in the store, by default."
    )
    delta_cache_bytes: Bytes = Field(default=4 << 30, ge=0, description="Deltas in memory, those in use included.")
    plan_cache_bytes: Bytes = Field(default=1 << 30, ge=0, description="Plans and merged deltas kept in memory.")
    kv_bytes: Bytes = Field(default=1 << 30, ge=1 << 20, description="Keys and values of texts under way.")
    prefix_bytes: Bytes = Field(default=1 << 28, ge=0, description="Keys and values of texts that came before.")
    max_running: int = Field(default=32, ge=1, description="Texts under way at a time.")
    max_step_tokens: int = Field(default=512, ge=1, description="Tokens of one forward pass.")
    max_waiting: int = Field(default=1024, ge=1, description="Texts, and requests to be read, that may wait.")
    check_seconds: float = Field(
        default=60, ge=0, le=86400, description="How often idle moments are used to check what is in memory; 0: never."
    )
    log_format: Literal["json", "text"] | None = Field(
        default=None, description="json or text; text where stderr is a terminal, else json, when absent."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="From which on Patchbay's own records are written; libraries' are from warnings on."
    )
    preload: str | None = Field(default=None, description="Deltas to load and pin at start, with commas between.")

    @model_validator(mode="after")
    def _no_short_key(self) -> Self:
        if self.api_key is not None and len(self.api_key.get_secret_value()) < 16:
            raise ValueError("PATCHBAY_API_KEY is shorter than 16 characters: choose a longer one")
        return self

    @property
    def is_loopback(self) -> bool:
        """Nobody but this machine can reach the host."""
        return _is_loopback(self.host)

    @property
    def jobs_path(self) -> Path:
        return self.jobs_db or self.store / "jobs.db"

    @property
    def preloaded(self) -> list[str]:
        return [name for part in (self.preload or "").split(",") if (name := part.strip())]

    @property
    def blobs_url(self) -> str:
        return self.blob_url or (self.store.absolute() / "blobs").as_uri()

    @property
    def catalog_url(self) -> str:
        return catalog_url(self.store, self.store_url)


def catalog_url(store: Path, store_url: str | None) -> str:
    """Of the catalog: in the store, unless another is named."""
    return store_url or f"sqlite:///{store.absolute() / 'catalog.db'}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

"""From settings to parts that need no thread and no network: what the daemon, a replay and `explain` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models import features
from models import weights as weights_files
from models.step import cuda_is_available, kernel_trouble, state_size
from streamer.errors import ModelError
from streamer.payloads import Decoder, Rule
from streamer.payloads.globs import compile_globs
from streamer.registry import Registry
from streamer.settings import Settings
from streamer.shard import FindWeights, Shard
from streamer.sinks import discovery
from streamer.topics import own_prefix

DEVICE_CACHE_BYTES = 1 << 20
LEAST_CACHE_BYTES, CACHE_BYTES = 16 << 20, 2700  # for the names of topics and fields; the latter a series


def decoder_from(settings: Settings) -> Decoder:
    """The decoder of payloads that `input` describes; it never reads this instance's own output."""
    given, theirs = settings.input, settings.home_assistant
    births = (discovery.birth_topic(theirs.prefix),) if theirs.enabled else ()
    return Decoder(
        include=given.include,
        exclude=(*given.exclude, discovery.all_configs(theirs.prefix), *births),
        own_prefix=own_prefix(settings.instance),
        rules=tuple(Rule(**rule.model_dump()) for rule in given.rules),
        booleans=given.booleans,
        time_zone=given.time_zone,
        max_payload_bytes=given.max_payload_bytes,
        max_depth=given.max_depth,
        max_fields=given.max_fields,
        cache_bytes=max(LEAST_CACHE_BYTES, CACHE_BYTES * settings.limits.max_series),
    )


def device_of_from(settings: Settings) -> Callable[[str], str]:
    """The name of a series' device; for one thread, and with little memory of its own."""
    rules = tuple(Rule(**rule.model_dump()) for rule in settings.input.rules)
    return Decoder(rules=rules, cache_bytes=DEVICE_CACHE_BYTES).device


def is_included_from(settings: Settings) -> Callable[[str], bool]:
    """Whether Home Assistant is to be told of a device of that name."""
    wanted = compile_globs(settings.home_assistant.include, "/")
    return lambda name: wanted is None or wanted.fullmatch(name) is not None


def weights_path(settings: Settings) -> Path:
    """Of the weights that the settings name, or of the shipped ones."""
    return Path(settings.model.weights) if settings.model.weights else weights_files.BASE


def load_weights(settings: Settings, *, offline: bool = False) -> weights_files.Weights:
    """The weights that the settings name, or the shipped ones. Raises ModelError.

    `offline`: for labelling history, which wants a forecaster that reads a series from both ends.
    """
    path = weights_path(settings)
    try:
        weights = weights_files.load(path)
    except weights_files.WeightsError as error:
        raise ModelError(str(error)) from error
    if weights.config.input_size != features.INPUT_SIZE:
        raise ModelError(
            f"{path}: found weights for {weights.config.input_size} inputs; this version has {features.INPUT_SIZE}: "
            "use weights that this version has trained"
        )
    if offline:
        if not weights.config.bidirectional:
            raise ModelError(
                f"{path}: found weights that read a series from its beginning only; --offline-label wants "
                "bidirectional ones: make them with `streamer train --pretrain --bidirectional OUT.safetensors`, and "
                "name them with --set model.weights=OUT.safetensors"
            )
        return weights
    try:
        weights_files.check_streams(weights.config)
    except weights_files.WeightsError as error:
        raise ModelError(f"{path}: {error}") from error
    return weights


def device_from(settings: Settings) -> str:
    """cpu or cuda; torch is asked only where cuda may be meant. Raises ModelError."""
    wanted = settings.model.device
    if wanted == "cpu" or cuda_is_available():
        return "cpu" if wanted == "cpu" else "cuda"
    if wanted == "cuda":
        raise ModelError("model.device: found no CUDA device that torch can use; expected one, or cpu, or auto")
    return "cpu"


def step_told(settings: Settings) -> str:
    """Where the model steps and, on CUDA, by what; for people. The kernel is compiled and tried. Raises ModelError."""
    device = device_from(settings)
    if device == "cpu":
        return device
    trouble = kernel_trouble(load_weights(settings).config, device)
    return f"{device}, by torch; the kernel does not serve: {trouble}" if trouble else f"{device}, by the kernel"


def shard_from(
    settings: Settings,
    weights: weights_files.Weights,
    registry: Registry,
    *,
    offline: bool = False,
    find_weights: FindWeights = lambda _: None,
) -> Shard:
    """A shard without a past; one that labels history steps on the CPU. Raises ModelError."""
    most = settings.limits.max_series
    try:
        return Shard(
            registry,
            weights,
            most,
            budget_per_series_month=settings.alarms.budget_per_series_month,
            device="cpu" if offline else device_from(settings),
            offline=offline,
            lateness_seconds=settings.input.lateness_seconds,
            find_weights=find_weights,
        )
    except weights_files.WeightsError as error:  # the scorer's, which are a part of the program
        raise ModelError(str(error)) from error
    except MemoryError as error:
        raise ModelError(
            f"found no memory for {most} series, each with a hidden state of {4 * state_size(weights.config)} bytes "
            "under these weights; expected a smaller limits.max_series, or weights with fewer units, layers or less "
            "attention"
        ) from error

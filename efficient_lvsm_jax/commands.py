"""What all programs share: flags, configuration files, their overrides, exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import errno
import logging
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from efficient_lvsm_jax.configuration import Settings, check_key, expected, meanings, takes
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import first_line

JAX_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")
# What a system may run out of: space, memory, files or processes.
USED_UP = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
# Exit statuses, as of programs that SIGPIPE and SIGINT end.
OUTPUT_CLOSED, INTERRUPTED = 141, 130
AGAIN = 1.0  # seconds after which Ctrl-C that was lost is repeated
WIDTH = 100  # columns of what is printed
PRODUCTS = ("int8", "fp8")  # in which a model's layers may multiply, see `weights.load`
started_by = ""  # "elvsm VERB", if that runs in this process
interrupted = threading.Event()  # by Ctrl-C, of which libraries may have made another error

# Of a configuration, the dataclasses that its groups become; "" is what belongs to no group.
Groups = Callable[[ConfigDict], Mapping[str, type]]


def keep_programs() -> None:
    """Keeps compiled programs between starts, also for what is started from here.

    In JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder. To be called before jax is
    imported, which reads it then.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    programs = cache / "efficient_lvsm_jax" / "programs"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


class Parser(argparse.ArgumentParser):
    """A command line without a configuration file; flags are not abbreviated."""

    def __init__(self, program: str, about: str, renamed: Mapping[str, str] | None = None):
        """A parser without flags.

        Args:
          program: how it is started, unless by elvsm.
          about: what it does, and examples.
          renamed: flags that have a new name, see `check_spelling`.
        """
        super().__init__(
            prog=as_started(program),
            description=as_started(about),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._renamed = renamed or {}

    def parse_args(self, args=None, namespace=None):
        """As the base class; InputError for a flag that has a new name."""
        args = sys.argv[1:] if args is None else args
        check_spelling(args, self._renamed, self._option_string_actions)
        return super().parse_args(args, namespace)

    def error(self, message: str):
        """Ends with one line: below the usage it is lost."""
        self.exit(2, f"error: {message}; see --help\n")


def as_started(text: str) -> str:
    """`text` with `elvsm VERB` where it names the program, if that started this process."""
    return re.sub(r"python (-m [\w.]+|\w+\.py)", started_by, text) if started_by else text


def check_spelling(
    arguments: Sequence[str], renamed: Mapping[str, str], known: Container[str]
) -> None:
    """Raises an InputError that names the new name of a flag.

    Args:
      arguments: of the command line.
      renamed: flags with the name they have now.
      known: all flags, whose words have dashes between.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        dashed = name.replace("_", "-")
        if name in renamed or (dashed != name and dashed in known):
            raise InputError(f"{name} is now {renamed.get(name, dashed)}")


def add_products_option(parser: argparse.ArgumentParser) -> None:
    """Adds --products, which `weights.load.load_renderer` takes."""
    parser.add_argument(
        "--products",
        choices=PRODUCTS,
        help="in which layers multiply: int8 keeps their weights in a quarter of float32's "
        "memory, fp8 is for NVIDIA GPUs that multiply it (default: floats)",
    )


def picture_size(text: str) -> tuple[int, int]:
    """Height and width in pixels, of "H" or "HxW"; ArgumentTypeError of anything else."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected pixels, e.g. 256 or 256x384 (HxW)")
    return int(found[1]), int(found[2] or found[1])


def command_line(
    argv: Sequence[str],
    define_flags: Callable[[flags.FlagValues], None] | None = None,
    *,
    usage: str,
    workdir: bool = True,
    settings: Groups = lambda config: {},
    renamed: Mapping[str, str] | None = None,
) -> tuple[ConfigDict, flags.FlagValues]:
    """Reads `--config FILE --config.a.b=value --workdir DIR` and the caller's own flags.

    Args:
      argv: with the program's name first.
      define_flags: defines further flags on the FlagValues it is given.
      usage: what to print for --help.
      workdir: whether there is a --workdir, which then must be given.
      settings: of a configuration, the dataclasses that its groups become. Every field of theirs
        can be set, listed in the file or not; --help-settings prints them.
      renamed: flags that have a new name, see `check_spelling`.

    Returns:
      The configuration, complete and with its overrides, and all flags.

    Raises:
      InputError: no or unreadable configuration file, unknown flag or setting (the message names
        the nearest one), a flag's old name, a value of the wrong type, stray arguments.
    """
    answer_help(argv, define_flags, usage=usage, workdir=workdir)
    values = _flag_values(define_flags, workdir)
    check_spelling(argv[1:], renamed or {}, [f"--{name}" for name in values])
    argv = _with_configuration(argv)
    overrides = [argument for argument in argv[1:] if argument.startswith("--config.")]
    try:
        stray = values([argument for argument in argv if argument not in overrides])[1:]
        if stray:
            raise InputError(f"unexpected argument {stray[0]!r}; see --help")
        all_settings = values["help-settings"].value
        for name in () if all_settings else ("config", "workdir") if workdir else ("config",):
            if values[name].value is None:
                raise InputError(f"--{name} is missing; see --help")
        config = values.config
        if config is not None:
            config.keys()  # raises what went wrong while reading the file
            config = _overridden(config, overrides, settings)
    except flags.Error as error:
        raise InputError(f"{error}; see --help") from error
    except OSError as error:
        raise InputError(f"--config: {' '.join(str(error).split())}") from error
    if all_settings:
        print("\n".join(describe_settings(settings, config)))
        raise SystemExit(0)
    return config, values


def answer_help(
    argv: Sequence[str],
    define_flags: Callable[[flags.FlagValues], None] | None = None,
    *,
    usage: str,
    workdir: bool = True,
) -> None:
    """Prints usage and flags, and exits, if --help is asked for; arguments as of `command_line`.

    That does so, too; programs call it themselves before they import what takes seconds to load.
    """
    if {"-h", "--help"} & {*argv[1:]}:
        values = _flag_values(define_flags, workdir)
        print(as_started(usage).strip(), values.get_help(), sep="\n\n")
        raise SystemExit(0)


def _flag_values(
    define_flags: Callable[[flags.FlagValues], None] | None, workdir: bool
) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "configuration file", flag_values=values, sys_argv=[]
    )
    if workdir:
        flags.DEFINE_string("workdir", None, "folder of this run", flag_values=values)
    flags.DEFINE_bool("help", False, "print this help", short_name="h", flag_values=values)
    flags.DEFINE_bool("help-settings", False, "print all settings", flag_values=values)
    if define_flags is not None:
        define_flags(values)
    return values


def _overridden(config: ConfigDict, overrides: Sequence[str], settings: Groups) -> ConfigDict:
    """The configuration of a file, complete, with values from the command line."""
    if "model" in settings(config):
        for override in overrides:
            if override.startswith("--config.family="):  # decides what the model's settings are
                with config.unlocked():
                    config.family = override.partition("=")[2]
    config = complete(config, settings)
    for override in overrides:
        _check_override(config, override)
    overrides = [each for each in overrides if not _set_number(config, each, settings)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=overrides)
    values(["", *overrides])
    return values.config


def _set_number(config: ConfigDict, override: str, settings: Groups) -> bool:
    """Sets a setting that is an integer or a fraction, whichever it was; False of any other."""
    name, _, text = override.removeprefix("--config.").partition("=")
    group, _, field = name.rpartition(".")
    settings_class = settings(config).get(group)
    if settings_class is None or not takes(settings_class, field, int | float):
        return False
    try:
        value = float(text) if set(text) & set(".eE") else int(text)
    except ValueError as error:
        raise InputError(
            f"--config.{name}={text}: expected an integer, or a fraction with a point: 0.5 or 1.0"
        ) from error
    values = config[group] if group else config
    with values.unlocked():
        del values[field]  # it would make the new value one of the same type
        values[field] = value
    return True


def complete(config: ConfigDict, settings: Groups) -> ConfigDict:
    """A copy of a configuration with the defaults of all settings that it leaves out."""
    config = copy.deepcopy(config)
    with config.unlocked():
        for group, settings_class in settings(config).items():
            if group and group not in config:
                config[group] = ConfigDict()
            values = config[group] if group else config
            for field in dataclasses.fields(settings_class):
                if field.name not in values and field.default is not dataclasses.MISSING:
                    values[field.name] = field.default
    return config


def describe_settings(settings: Groups, config: ConfigDict | None) -> list[str]:
    """Lines about every setting: its value, what it may be, what it means.

    Args:
      settings: what there is.
      config: complete, whose values are shown; None shows defaults, of the models of all families.
    """
    variants = [ConfigDict()] if config is None else [config]
    for field in dataclasses.fields(settings(variants[0]).get("", Settings)):
        if field.name == "family" and config is None:
            variants = [ConfigDict({"family": family}) for family in field.metadata["choices"]]
    shown = {}  # every class once, whichever families have it
    for variant in variants:
        for group, settings_class in settings(variant).items():
            shown.setdefault((group, settings_class), variant)
    lines = []
    for (group, settings_class), variant in shown.items():
        family = f" of {variant.family}" if group == "model" else ""
        lines += ["", f"--config.{f'{group}.' if group else ''}NAME=VALUE{family}", ""]
        meaning = meanings(settings_class)
        values = variant.get(group, {}) if group else variant
        for field in dataclasses.fields(settings_class):
            value = values.get(field.name, field.default)
            line = f"{field.name}={repr('') if value == '' else value}"
            line += f" ({expected(settings_class, field)})"
            lines += textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="    ")
            indent = " " * 6
            lines += textwrap.wrap(
                meaning[field.name], WIDTH, initial_indent=indent, subsequent_indent=indent
            )
    return lines[1:]


def _with_configuration(argv: Sequence[str]) -> list[str]:
    """`argv` with a --config that is a file: one that is here, or comes with this package.

    Raises:
      InputError: there is no such file (lists those that come with this package).
    """
    argv = list(argv)
    for index, argument in enumerate(argv):
        name, equals, given = argument.partition("=")
        if name != "--config":
            continue
        at = index if equals else index + 1
        if not equals:
            given = argv[at] if at < len(argv) else ""
        if not given or Path(given).exists():
            break
        import configs

        folder = Path(configs.__file__).parent
        known = sorted(path.name for path in folder.glob("*.py") if path.stem != "__init__")
        if Path(given).parent != Path("configs") or Path(given).name not in known:
            raise InputError(
                f"--config {given}: no such file; with this package come "
                f"{', '.join(f'configs/{each}' for each in known)}"
            )
        own = str(folder / Path(given).name)
        argv[at] = f"{name}={own}" if equals else own
        break
    return argv


def _check_override(config: ConfigDict, override: str) -> None:
    """Raises an InputError unless `--config.a.b=value` names a setting of `config`."""
    name, equals, _ = override.removeprefix("--").partition("=")
    if not equals:
        raise InputError(f"{override}: expected --{name}=VALUE")
    where, *keys = name.split(".")
    group: Any = config
    for key in keys:
        if not isinstance(group, ConfigDict):
            raise InputError(f"--{name}: {where} is a single setting, it has no .{key}")
        check_key(key, group.keys(), where)
        group, where = group[key], f"{where}.{key}"
    if isinstance(group, ConfigDict):
        raise InputError(f"--{name}: a group of settings ({', '.join(group)}), not one")


def main_exit(main: Callable[[], int | None]) -> None:
    """Runs a command-line `main` and exits; an `InputError` becomes one line and exit status 2.

    So does running out of memory, on the host or a device, and of what else a system has: space,
    open files, processes.

    Ctrl-C becomes one line and exit status 130, whatever it met with.

    Warnings of the library become lines on stderr, each said once.
    """
    sys.unraisablehook = _say_unraisable
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, _interrupt)
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING, force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Once())
    try:
        try:
            status = main()
            sys.stdout.flush()
        except Exception as error:
            if interrupted.is_set():
                raise KeyboardInterrupt from error
            raise
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `| head`; nothing is left to be flushed to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OUTPUT_CLOSED)
    except InputError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _end_interrupted()
    except Exception as error:
        # JAX's error by its name: not every program loads JAX.
        jax_says_so = type(error).__name__ in JAX_ERRORS and "RESOURCE_EXHAUSTED" in str(error)
        if isinstance(error, OSError) and error.errno in USED_UP:
            said = f"the system has none left: {first_line(error)}; free some, or ask for less"
        elif jax_says_so or isinstance(error, MemoryError):
            said = (
                f"out of memory ({first_line(error)}); take smaller pictures, fewer views, or "
                "fewer scenes at once (evaluation.batch_size)"
            )
        else:
            raise
        print(f"error: {_printable(said)}", file=sys.stderr)
        sys.exit(2)
    signal.setitimer(signal.ITIMER_REAL, 0)  # of a Ctrl-C that came too late
    sys.exit(status or 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, and again until something is on its way out with it.

    It may be lost: in callbacks of the garbage collector, of which JAX has one, and in libraries
    that are being imported and try whatever they can.
    """
    interrupted.set()
    signal.signal(signal.SIGALRM, _interrupt_again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
    raise KeyboardInterrupt


def _interrupt_again(number: int, frame: FrameType | None) -> None:
    if sys.exception() is None:
        raise KeyboardInterrupt


def _end_interrupted() -> None:
    """Ends the process at once: Python's own end waits for what XLA is at in threads, or crashes.

    With the processes that it started, which that end would have stopped.
    """
    import multiprocessing

    for child in multiprocessing.active_children():
        child.terminate()
    with contextlib.suppress(OSError):  # whoever read may be gone, too
        sys.stdout.flush()
        print("interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


def _say_unraisable(lost: Any) -> None:
    if lost.exc_type is not KeyboardInterrupt:  # which comes again
        sys.__unraisablehook__(lost)


def _printable(text: str) -> str:
    """The text without control characters, which names in files may have, for a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class _Once(logging.Filter):
    """Lets a message through once, printable: a scene that is read again is no news."""

    def __init__(self):
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _printable(record.getMessage()), ()
        new = record.msg not in self._said
        self._said.add(record.msg)
        return new

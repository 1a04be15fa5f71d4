"""What an operator has done wrong, said so that he can mend it.

    StreamerError            found, wanted, what to do; the command line prints it and exits with 2
    ├── SettingsError        an unknown, missing or impossible setting
    ├── StateError           the state directory cannot be read, written or locked
    ├── ModelError           a weights file that is damaged, unknown or unfit
    ├── InputError           a file to replay that cannot be understood
    └── ServiceError         a port in use, a certificate that cannot be loaded

What the world does (payloads, broker, disk) is counted, not raised; our own bugs are not caught.
"""


class StreamerError(Exception):
    """Base of every error that an operator can mend; its text stands alone."""


class SettingsError(StreamerError):
    """A setting that is unknown, missing or out of bounds."""


class StateError(StreamerError):
    """A state directory that cannot be used."""


class ModelError(StreamerError):
    """Weights that cannot be used."""


class InputError(StreamerError):
    """A file of readings that cannot be understood."""


class ServiceError(StreamerError):
    """A resource of this machine that cannot be had: a port, a certificate, a key file."""

"""blame - an exception that nobody expected, as one line: what went wrong, and where"""

from __future__ import annotations

from proxymap.config.maincf import mask_secrets


def blame(error: BaseException, path: str) -> str:
    """blame - what went wrong, and in which line: of the file, if any of its own has a part in it"""
    own = last = None
    trace = error.__traceback__
    while trace is not None:
        last = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        own = last if last[0] == path else own
        trace = trace.tb_next
    line = own or last
    if isinstance(error, SyntaxError) and error.filename == path:
        line = path, error.lineno or 0
    text = " ".join(f"{error}".split())
    what = mask_secrets(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    return f"{what} ({line[0]}, line {line[1]})" if line else what

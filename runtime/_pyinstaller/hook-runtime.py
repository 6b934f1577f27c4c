"""PyInstaller reads this when an application imports `runtime`.

`runtime` imports its modules by name at their first use, which PyInstaller cannot see. All are small, so all are taken
but for what an application has to import itself: the server, adapters to other tools, and this hook.
"""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_submodules

_NOT_BY_DEFAULT = ("runtime.server", "runtime.integrations", "runtime._pyinstaller", "runtime.__main__")


def _is_needed(name: str) -> bool:
    return not name.startswith(_NOT_BY_DEFAULT) or name == "runtime.server_settings"


hiddenimports = collect_submodules("runtime", filter=_is_needed)

"""The rules of the house: which room may know which, and that nothing in it is dead, hidden or out of place."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest

from celery_jobqueue.broker import sql
from celery_jobqueue.db.cli import main as command
from celery_jobqueue.db.url import libpq_dsn
from tests.faults.catalogue import SCENARIOS
from tests.support.workers import ROOT

PRODUCT = {"db": "celery_jobqueue.db", "broker": "celery_jobqueue.broker", "tasks": "tasks"}
#: What the code of a folder must not know.
FORBIDDEN = {
    "db": {"celery_jobqueue.broker", "tasks", "tests", "celery", "kombu", "billiard", "vine", "amqp"},
    "broker": {"tasks", "tests", "sqlalchemy", "reportlab"},
    "tasks": {"tests"},
    "tests": set(),
}
#: Modules without `__all__`, and why.
WITHOUT_ALL = {
    "broker/__init__.py": "imported for its effect",
    "db/__init__.py": "the package's name and nothing else",
    "db/__main__.py": "a program",
    "db/schema/__init__.py": "holds SQL, no code",
    "tasks/certificates/__init__.py": "the package's name and nothing else",
    "tasks/bulk/__init__.py": "the package's name and nothing else",
    "tasks/certificates/__main__.py": "a program",
    "tasks/demo.py": "a program",
    "tasks/web/__main__.py": "a program",
    "tasks/settings.py": "read by Celery, name by name",
}
LONGEST = 400  # lines of a Python file that still fits into one's head


@cache
def tracked() -> tuple[Path, ...]:
    """Every file of the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def name_of(path: Path) -> str:
    """Where it stands in the repository."""
    return path.relative_to(ROOT).as_posix()


def sources(*folders: str) -> dict[str, ast.Module]:
    """Syntax trees of the Python files in these folders, by their place in the repository."""
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8"))
            for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def module_name(place: str) -> str:
    """The name a file is imported by."""
    folder, _, rest = place.removesuffix(".py").removesuffix("/__init__").partition("/")
    return ".".join(filter(None, [PRODUCT[folder], *rest.split("/")]))


def imports(tree: ast.Module) -> Iterator[str]:
    """Absolute names of everything that is imported, also inside of functions; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def exported(tree: ast.Module) -> list[str] | None:
    """`__all__`; None when there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


def top_level_names(tree: ast.Module) -> set[str]:
    """Names that a module defines or imports."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names.update(name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store))
    return names


# -- rooms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_point_one_way(folder: str) -> None:
    wrong = [f"{place} imports {name}" for place, tree in sources(folder).items() for name in imports(tree)
             for room in FORBIDDEN[folder] if f"{name}.".startswith(f"{room}.")]
    assert not wrong


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_the_code_uses_the_names_that_are_installed(folder: str) -> None:
    """Neither relative names nor the folders' own: `import db` would take the application's module."""
    wrong = [f"{place} imports {name}" for place, tree in sources(folder).items() for name in imports(tree)
             if name.startswith(".") or name.partition(".")[0] in ("broker", "db")]
    assert not wrong


def test_every_module_says_what_it_is_and_what_it_gives() -> None:
    wrong = []
    for place, tree in sources(*PRODUCT).items():
        names = exported(tree)
        if not ast.get_docstring(tree) and tree.body:
            wrong.append(f"{place} has no docstring")
        if (names is None) != (place in WITHOUT_ALL):
            wrong.append(f"{place}: " + ("no __all__" if names is None else "has an __all__: take it out of WITHOUT_ALL"))
        wrong += [f"{place}: {name} in __all__ does not exist" for name in set(names or ()) - top_level_names(tree)]
    assert not wrong
    assert not [place for place in WITHOUT_ALL if not (ROOT / place).exists()]


def test_modules_take_from_each_other_only_what_is_given() -> None:
    trees = sources(*PRODUCT)
    given = {module_name(place): exported(tree) for place, tree in trees.items()}
    wrong = [f"{place} takes {alias.name} from {node.module}" for place, tree in trees.items() for node in ast.walk(tree)
             if isinstance(node, ast.ImportFrom) and (names := given.get(node.module or "")) is not None
             for alias in node.names if alias.name not in names and f"{node.module}.{alias.name}" not in given]
    assert not wrong


def test_files_fit_into_ones_head() -> None:
    long = {name_of(path): lines for path in tracked() if path.suffix == ".py"
            and (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST}
    assert not long


def test_one_tree_of_exceptions() -> None:
    bases: dict[str, set[str]] = {}
    for tree in sources(*PRODUCT).values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}

    def ancestors(name: str) -> set[str]:
        above = bases.get(name, set()) - {name}  # Channel(virtual.Channel)
        return {name}.union(*map(ancestors, above))

    def is_exception(name: str) -> bool:
        found = getattr(builtins, name, None)
        return isinstance(found, type) and issubclass(found, BaseException)

    public = [name for name in bases if not name.startswith("_") and any(map(is_exception, ancestors(name)))]
    assert {"ConfigurationError", "InvalidJob", "JobFailed", "UnknownEvent"} <= set(public)
    assert not [name for name in public if "JobQueueError" not in ancestors(name)]


# -- what must not get out ------------------------------------------------------------------------------------------------

# Put together from parts, so that this file does not match.
REGISTRIES = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.", "registry." + "npm", "index" + "-url", "find" + "-links")
MACHINE = ("/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/", "/Us" + "ers/")


@pytest.mark.parametrize("pattern", [*REGISTRIES, *MACHINE])
def test_no_registry_and_no_path_of_a_machine_in_any_file(pattern: str) -> None:
    found = [name_of(path) for path in tracked() if pattern.encode() in path.read_bytes()]
    assert not found


def test_no_file_holds_a_secret() -> None:
    key = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bghp_[0-9A-Za-z]{36}\b")
    assert not [name_of(path) for path in tracked() if key.search(path.read_bytes())]
    assert not [name for name in map(name_of, tracked()) if Path(name).name == ".env"]


# -- statements -----------------------------------------------------------------------------------------------------------


def _statement_names() -> list[str]:
    return re.findall(r"^-- name: (\w+)$", (ROOT / "broker/sql/statements.sql").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    used: set[str] = set()
    for place, tree in sources("broker").items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("statement", "self._run") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    used.add(first.value)
                else:
                    # Only these two pass a name or calls on; anywhere else the name has to be readable.
                    assert place in ("broker/results.py", "broker/transient.py"), f"{place}:{node.lineno}"
    names = _statement_names()
    assert sorted(names) == sorted(set(names))
    assert used == set(names)


def test_no_sql_is_written_anywhere_else() -> None:
    verb = re.compile(r"^\s*(select .+ from|insert into|update \w+ set|delete from|with \w+ as)\b", re.IGNORECASE | re.DOTALL)
    found = [f"{place}:{node.lineno}" for place, tree in sources("broker").items() for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and verb.match(node.value)]
    assert not found


@pytest.mark.parametrize("name", _statement_names())
def test_the_schema_knows_every_statement(name: str, prepared: psycopg.Connection[tuple[object, ...]]) -> None:
    """PostgreSQL checks tables, columns, functions and parameter types when it prepares."""
    result = prepared.pgconn.prepare(name.encode(), sql.statement(name).text)
    assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, result.error_message.decode()


@pytest.fixture(scope="module")
def prepared(server: str, template: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A connection to a migrated database."""
    from tests.support.database import fresh_database

    with fresh_database(server, template) as url, psycopg.connect(libpq_dsn(url), autocommit=True) as conn:
        yield conn


def test_no_function_of_the_schema_is_dead() -> None:
    migrations = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "db/schema").rglob("*.sql")))
    text = re.sub(r"^comment on .*?;$|--.*?$", "", migrations, flags=re.MULTILINE | re.DOTALL)
    text += (ROOT / "broker/sql/statements.sql").read_text(encoding="utf-8")
    text += "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tasks").rglob("*.py")))
    functions = set(re.findall(r"^create (?:or replace )?function jobqueue\.(\w+)", text, re.MULTILINE))
    assert {"publish", "claim"} <= functions
    calls = re.findall(r"(?<!function )\bjobqueue\.(\w+)\s*\(", text) + re.findall(r"execute function jobqueue\.(\w+)", text)
    assert functions - set(calls) == set()


# -- words that lead somewhere ---------------------------------------------------------------------------------------------


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def _documents() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def test_the_makefile_keeps_its_word() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == _make_targets()
    modules = re.findall(r"-m (tasks(?:\.\w+)*|celery_jobqueue(?:\.\w+)*)", text)
    assert modules
    for module in modules:
        place = module.removeprefix("celery_jobqueue.").replace(".", "/")
        assert (ROOT / f"{place}.py").exists() or (ROOT / place / "__main__.py").exists(), module


def test_what_documents_tell_to_type_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in _documents())
    assert {"demo", "test"} <= set(re.findall(r"\bmake (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    commands = "\n".join([*re.findall(r"```.*?```", text, re.DOTALL), *re.findall(r"`[^`\n]+`", text)])
    assert set(re.findall(r"\bmake ([a-z]+)\b", commands)) <= _make_targets()
    assert set(re.findall(r"\bjobqueue ([a-z]+)\b", commands)) <= set(command.commands)


@pytest.mark.parametrize(("document", "least"), [("contract.md", 50), ("guarantees.md", 70)])
def test_the_tests_that_documents_name_exist(document: str, least: int) -> None:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) >= least
    texts = {file: (ROOT / "tests" / file).read_text(encoding="utf-8") for file, _ in named}
    assert [f"{file}::{name}" for file, name in named if f"\ndef {name}(" not in texts[file]] == []
    scenarios = set(re.findall(r"`faults::(\w+)`", text))
    assert scenarios <= set(SCENARIOS)
    # A row of a table of promises without a test is none; a heading and its rule are no rows.
    rows = [line for line in text.splitlines() if line.startswith("| ") and not re.match(r"\| (Promise|Requirement) \|", line)]
    assert [row for row in rows if not re.search(r"`[\w/.]+::\w+`|every scenario of|\*\*Not met\*\*", row)] == []


def test_every_link_leads_somewhere() -> None:
    broken = []
    for path in _documents():
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"", text):
            link = unquote("".join(target).partition("#")[0])
            if link and "://" not in link and not link.startswith("mailto:") and not (path.parent / link).exists():
                broken.append(f"{name_of(path)}: {link}")
    assert not broken

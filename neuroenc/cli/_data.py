"""``neuroenc data``: which data sets there are, and their files on this machine."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._cache import size_text
from neuroenc.cli._errors import clean_errors

app = typer.Typer(no_args_is_help=True, help="Data sets: list, show, fetch, verify, describe, assembly, atlas.")

Name = Annotated[str, typer.Argument(help="Data set, as in `neuroenc data list`.")]
Dest = Annotated[
    Path | None, typer.Option(help="Folder of all data sets; default NEUROENC_DATA, else in the cache folder.")
]
Mirror = Annotated[
    Path | None, typer.Option(help="Folder laid out as MIRROR/NAME/path, tried first; default NEUROENC_MIRROR.")
]
Files = Annotated[
    list[str] | None, typer.Option("--file", help="Only this path or glob, e.g. '*201025*'; may be repeated.")
]


@app.command("list")
@clean_errors
def list_(mirror: Mirror = None) -> None:
    """Data sets with size, licence and whether their files are on this machine."""
    from neuroenc.data import list_manifests, presence

    header = ("name", "size", "present", "licence", "title")
    rows = [(m.name, size_text(m.size), presence(m, mirror), m.licence, m.title) for m in list_manifests()]
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    for row in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    typer.echo("\npresent: yes = in the data folder, mirror = read in place from the mirror, partly, no.")


@app.command()
@clean_errors
def show(name: Name, files: Annotated[bool, typer.Option(help="List the files too.")] = True) -> None:
    """Everything about one data set: licence, citation, loader options, files."""
    from neuroenc.data import load_manifest, loader_options

    manifest = load_manifest(name)
    options = ", ".join(f"{k}={v!r}" for k, v in loader_options(manifest).items()) or "none"
    told = ("title", "description", "licence", "redistribution", "access", "citation", "doi", "homepage")
    lines = {name: getattr(manifest, name) for name in told} | {
        "load with": f'neuroenc.data.load_dataset("{manifest.name}")',
        "options": options,
        "files": f"{len(manifest.files)} ({size_text(manifest.size)})",
    }
    typer.echo(manifest.name)
    wrap = textwrap.TextWrapper(100, subsequent_indent=" " * 18, break_long_words=False, break_on_hyphens=False)
    for key, text in lines.items():
        if text:
            typer.echo(wrap.fill(f"  {key:<15} {text}"))
    for f in manifest.files if files else ():
        typer.echo(f"    {f.sha256[:12]}  {f.size:>10}  {f.path}{'' if f.url else '  (mirror only)'}")


@app.command()
@clean_errors
def fetch(
    name: Name,
    dest: Dest = None,
    mirror: Mirror = None,
    file: Files = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Bring a data set's files to this machine: kept if right, else from the mirror, else downloaded."""
    from neuroenc.data import fetch as fetch_files, load_manifest

    manifest = load_manifest(name)
    folder = fetch_files(manifest, dest=dest, mirror=mirror, files=file or None, progress=not quiet)
    chosen = manifest.select(file or None)
    typer.echo(f"{len(chosen)} files ({size_text(sum(f.size for f in chosen))}) verified in {folder}")


@app.command()
@clean_errors
def atlas(
    name: Annotated[str, typer.Argument(help="Atlas whose regions are listed; all atlases where left out.")] = "",
) -> None:
    """Atlases of the cortex on this machine, or the regions of one with their numbers of vertices."""
    from neuroenc.data import atlas_table, list_atlases, load_atlas

    if name:
        about = load_atlas(name).attrs
        typer.echo(f"{name}: {about['title']}\n  space     {about['space']}\n  files     {about['files']}")
        typer.echo(f"  licence   {about['licence']}\n  citation  {about['citation']}\n")
        typer.echo(atlas_table(name).to_string())
        return
    for one, row in list_atlases().iterrows():
        typer.echo(f"{one:<18} {row['space']:<10} {row['title']}")
        typer.echo(f"{'':<18} {'in ' + row['found'] if row['found'] else 'not found. Next step: ' + row['step']}")


@app.command()
@clean_errors
def verify(name: Name, dest: Dest = None, mirror: Mirror = None, file: Files = None) -> None:
    """Hash every file anew; exit code 1 if one is missing or not what the manifest promises."""
    from neuroenc.data import data_dir, verify as verify_files

    table = verify_files(name, root=data_dir(dest) / name if dest else None, mirror=mirror, files=file or None)
    bad = table[table["status"] != "ok"]
    for row in bad.itertuples():
        found = "" if row.status == "missing" else f" (found {row.size} bytes, sha256 {row.sha256})"
        typer.echo(f"{row.status}: {row.path}: expected {row.expected_size} bytes, sha256 {row.expected_sha256}{found}")
    if not len(table):
        raise DataError(f"{name} has no list of files to verify. Next step: neuroenc data describe FOLDER.")
    where = ", ".join(dict.fromkeys(table.loc[table["status"] != "missing", "folder"])) or table["folder"].iloc[0]
    typer.echo(f"{name}: {len(table) - len(bad)} of {len(table)} files ok in {where}")
    if len(bad):
        raise typer.Exit(1)


@app.command()
@clean_errors
def describe(path: Annotated[Path, typer.Argument(help="Folder or file.")]) -> None:
    """What a folder or file holds, what is missing, and how it is loaded; exit code 1 if nothing is known."""
    from neuroenc.data import describe as find, known_layouts

    found = find(path)
    for item in found:
        typer.echo(str(item))
    if not found:
        held = sorted(x.name for x in path.iterdir())[:6] if path.is_dir() else []
        typer.echo(f"{path}: no known layout; {'it holds ' + ', '.join(held) if held else 'nothing that is read'}.")
        typer.echo(f"Known: {', '.join(known_layouts())}, NIfTI, .npy, .nc. For your own arrays see the README.")
        raise typer.Exit(1)


@app.command()
@clean_errors
def assembly(
    source: Annotated[str, typer.Argument(help="Responses, a .nc of neuroenc.data.save; or a data set by name.")],
    folder: Annotated[Path, typer.Argument(help="Where the files are written.")],
    identifier: Annotated[str, typer.Option(help="Of the assembly, such as lab.Author2026.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Of the data set's loader, key=value; may be repeated.")
    ] = None,
) -> None:
    """Write responses as a Brain-Score assembly (netCDF) with its stimulus set (CSV and images)."""
    import xarray as xr

    from neuroenc.data import EncodingData, load, load_dataset, write_assembly

    if source.endswith(".nc"):
        if option:
            raise ConfigError("--option is of a data set by name; found a file.")
        held = load(source)
        found = EncodingData(held if isinstance(held, xr.DataArray) else None, None)
    else:
        given: dict[str, Any] = dict(pair.partition("=")[::2] for pair in option or ())
        found = load_dataset(source, **given)
    responses = found.responses
    if responses is None or responses.dims[1:] != ("voxel",) or "stimulus" not in responses.coords:
        raise DataError(f"{source} holds no responses (presentation or stimulus, voxel).")
    for path in write_assembly(responses, folder, identifier=identifier, stimuli=found.stimuli):
        typer.echo(str(path))

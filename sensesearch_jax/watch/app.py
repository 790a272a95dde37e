"""The web application that shows runs: a page, and what it asks for as the runs go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from sensesearch_jax.errors import UserError
from sensesearch_jax.evaluation.curves import curve_sections
from sensesearch_jax.evaluation.forest import FILTERS
from sensesearch_jax.evaluation.page import flat_fields, render_page, templates
from sensesearch_jax.evaluation.trajectory_viewer import linked_data, small_jpeg
from sensesearch_jax.runtime.loopback import new_app
from sensesearch_jax.watch.run_files import Run, runs_in

SCRIPTS = 'curves.js', 'trajectory.js', 'trajectory_viewer.js', 'watch.js'
MOST_SIDE = 2048  # pixels of a picture that is sent


def create_app(folder: Path) -> FastAPI:
    """The application.

    Args:
        folder: workdir of a run, or folder of several, which is looked at anew for each answer.
    """
    app = new_app('watch')
    parts = templates(FILTERS)

    def run_of(name: str) -> Run:
        found = runs_in(folder)
        if name not in found:
            raise HTTPException(404, f'there is no run {name}')
        return found[name]

    @app.exception_handler(UserError)
    def told(request: Request, error: UserError) -> Response:
        return JSONResponse({'detail': str(error)}, 422)

    @app.get('/')
    def page() -> HTMLResponse:
        values = {'folder': folder.resolve().name}
        return HTMLResponse(render_page('watch.html', values, scripts=SCRIPTS, filters={}))

    @app.get('/state')
    def state() -> dict[str, Any]:
        return {'runs': [{'name': name, **run.state()} for name, run in runs_in(folder).items()]}

    @app.get('/runs/{name}/curves')
    def curves(name: str) -> HTMLResponse:
        sections = curve_sections(run_of(name).metrics())
        return HTMLResponse(parts.get_template('charts.html').module.curve_grids(sections))

    @app.get('/runs/{name}/trajectories')
    def trajectories(name: str) -> dict[str, Any]:
        run = run_of(name)
        protocol = run.protocol()
        groups = run.newest_trajectories() if protocol else []
        return linked_data(
            groups, protocol, lambda sha, side: f'runs/{quote(name)}/pictures/{sha}/{side}'
        )

    @app.get('/runs/{name}/pictures/{sha256}/{side}')
    def picture(name: str, sha256: str, side: int) -> Response:
        data = small_jpeg(run_of(name).picture(sha256), min(max(side, 1), MOST_SIDE))
        if data is None:
            raise HTTPException(404, 'there is no such picture')
        return Response(data, media_type='image/jpeg', headers={'Cache-Control': 'max-age=86400'})

    @app.get('/runs/{name}/config')
    def config(name: str) -> HTMLResponse:
        rows = list(flat_fields(run_of(name).config.to_dict()))
        return HTMLResponse(parts.get_template('config.html').module.fields(rows))

    return app

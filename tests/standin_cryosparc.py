"""A small server that answers what cryosparc-tools asks for External jobs, in place of cryoSPARC.

It publishes a description of its calls, as cryoSPARC does, from which cryosparc-tools makes its functions.
Names and arguments of the calls, and the models in the answers, are those of cryosparc-tools; what cryoSPARC
itself does with them is known from its documentation alone.

Started as a program it serves one project folder: ``python standin_cryosparc.py FOLDER PORT``.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from datetime import datetime, timezone
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from cryosparc.dataset import Dataset
from cryosparc.models.asset import GridFSAsset
from cryosparc.models.auth import Token
from cryosparc.models.event import ImageEvent, TextEvent
from cryosparc.models.job import Job
from cryosparc.models.job_spec import Connection, Input, InputSlot, JobSpec, Output, OutputResult, OutputSlot
from cryosparc.models.project import Project
from cryosparc.models.resource import ResourceSpec
from cryosparc.models.session import Session, SessionStats
from cryosparc.models.user import User
from cryosparc.models.workspace import Workspace

EMAIL, PASSWORD, TOKEN = "ali@example.com", "open sesame", "a-token"
ROOT = "/api/cmd"
CSDAT = "application/x-cryosparc-dataset"
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
# What a slot of each kind must have.
FIELDS = {
    "blob": [("path", "O"), ("idx", "<u4"), ("shape", "<u4", (2,)), ("psize_A", "<f4"), ("sign", "<f4")],
    "location": [
        ("micrograph_path", "O"),
        ("micrograph_shape", "<u4", (2,)),
        ("center_x_frac", "<f4"),
        ("center_y_frac", "<f4"),
    ],
    "alignments2D": [("shift", "<f4", (2,)), ("pose", "<f4"), ("psize_A", "<f4")],
    "ctf": [("df1_A", "<f4"), ("df2_A", "<f4")],
}


class Refused(Exception):
    """An answer that is an error."""


class Call:
    """A call: its name in cryosparc-tools, its way over HTTP, and who answers it."""

    def __init__(self, name, method, path, query=(), body=None, answer=None):
        self.name, self.method, self.path, self.query = name, method, path, query
        self.body, self.answer = body, answer
        self.pattern = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path))

    def described(self):
        parameters = [
            {"name": name, "in": "path", "required": True} for name in re.findall(r"{(\w+)}", self.path)
        ]
        parameters += [{"name": name, "in": "query", "required": False} for name in self.query]
        if self.answer == CSDAT:
            content = {CSDAT: {"schema": {"title": "Dataset", "type": "string", "format": "binary"}}}
        elif self.answer is None:
            content = {"application/json": {"schema": {}}}
        else:
            one = {"$ref": f"#/components/schemas/{self.answer.strip('[]')}"}
            schema = {"type": "array", "items": one} if self.answer.startswith("[") else one
            content = {"application/json": {"schema": schema}}
        told = {"summary": self.name, "parameters": parameters, "responses": {"200": {"content": content}}}
        if self.body:
            told["requestBody"] = {"content": {self.body: {"schema": {"title": "body"}}}}
        return told


JSON, FORM, BYTES = "application/json", "application/x-www-form-urlencoded", "application/octet-stream"
P, J = "/projects/{project_uid}", "/projects/{project_uid}/jobs/{job_uid}"
_SEARCH = ("order", "after", "limit", "project_uid", "workspace_uid", "type", "status", "category")
_SEARCH += tuple(
    f"{what}_at" for what in "created updated queued started completed waiting killed failed exported".split()
)
CALLS = [
    Call("login", "post", "/login", body=FORM, answer="Token"),
    Call("users.me", "get", "/users/me", answer="User"),
    Call("config.get_version", "get", "/version"),
    Call("projects.find", "get", "/projects", ("order", "after", "limit"), answer="[Project]"),
    Call("projects.find_one", "get", P, answer="Project"),
    Call("projects.get_directory", "get", f"{P}/directory"),
    Call(
        "workspaces.find",
        "get",
        "/workspaces",
        _SEARCH,
        answer="[Workspace]",
    ),
    Call("workspaces.find_one", "get", f"{P}/workspaces/{{workspace_uid}}", answer="Workspace"),
    Call("jobs.find", "get", "/jobs", _SEARCH, answer="[Job]"),
    Call(
        "jobs.create",
        "post",
        f"{P}/workspaces/{{workspace_uid}}/jobs",
        ("type", "title", "description"),
        JSON,
        "Job",
    ),
    Call("jobs.find_one", "get", J, answer="Job"),
    Call("jobs.get_directory", "get", f"{J}/directory"),
    Call("jobs.add_external_input", "post", f"{J}/inputs/{{input_name}}", body=JSON, answer="Job"),
    Call("jobs.add_external_output", "post", f"{J}/outputs/{{output_name}}", body=JSON, answer="Job"),
    Call(
        "jobs.connect",
        "post",
        f"{J}/inputs/{{input_name}}/connect",
        ("source_job_uid", "source_output_name"),
        answer="Job",
    ),
    Call("jobs.get_output_fields", "post", f"{J}/outputs/{{output_name}}/fields", body=JSON),
    Call("jobs.load_output", "get", f"{J}/outputs/{{output_name}}/data", ("slots", "version"), answer=CSDAT),
    Call(
        "jobs.save_output", "post", f"{J}/outputs/{{output_name}}/data", ("version", "filename"), CSDAT, "Job"
    ),
    Call("jobs.mark_running", "post", f"{J}/running", ("status",), answer="Job"),
    Call("jobs.mark_failed", "post", f"{J}/failed", ("error",), answer="Job"),
    Call("jobs.mark_completed", "post", f"{J}/completed", answer="Job"),
    Call("jobs.add_event_log", "post", f"{J}/log", ("type",), JSON, "TextEvent"),
    Call("jobs.update_event_log", "post", f"{J}/log/{{event_id}}", ("type",), JSON, "TextEvent"),
    Call("jobs.add_image_log", "post", f"{J}/images", ("text", "flags"), JSON, "ImageEvent"),
    Call("sessions.find_one", "get", f"{P}/sessions/{{session_uid}}", answer="Session"),
    Call(
        "sessions.create_and_enqueue_export_particles",
        "post",
        f"{P}/sessions/{{session_uid}}/export",
        ("picker_type",),
        answer="Job",
    ),
    Call("assets.upload", "post", f"{J}/assets", ("filename", "format"), BYTES, "GridFSAsset"),
]


class StandIn:
    """The server and what it knows.

    Attributes
    ----------
    jobs : dict
        Each job by its uid.
    data : dict
        Datasets by job and output.
    log : list of TextEvent or ImageEvent
    called : list of str
        Names of the calls that were answered.
    before : callable or None
        Called with the name of each call before it is answered.
    once_over : str
        "again" if jobs that have ended may run again, "no" if not.
    extracted : structured ndarray
        What Live has extracted so far.
    """

    def __init__(self, folder, port=0, version="v5.0.3"):
        self.folder, self.version = Path(folder), version
        self.jobs, self.data, self.log, self.assets, self.called = {}, {}, [], {}, []
        self.before, self.once_over, self.extracted = None, "again", []
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # In one piece: the second of two would wait for an answer to the first.
            wbufsize, disable_nagle_algorithm = -1, True

            def do_GET(self):
                standin.answer(self, "get")

            def do_POST(self):
                standin.answer(self, "post")

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.open = True

    def start(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        """Go away: who asks from now on finds nobody, and open connections get no answer."""
        if self.open:
            self.open = False
            self.http.shutdown()
            self.http.server_close()

    # How it is asked.

    def answer(self, request, method):
        at = urlsplit(request.path)
        path, query = at.path.removeprefix(ROOT), parse_qs(at.query)
        body = self.body_of(request)
        if not self.open:
            request.close_connection = True
            return
        if path == "/openapi.json":
            described = {"info": {}, "components": {}, "paths": {}}
            for call in CALLS:
                described["paths"].setdefault(call.path, {})[call.method] = call.described()
            self.send(request, 200, json.dumps(described).encode())
            return
        for call in CALLS:
            found = call.pattern.fullmatch(path)
            if call.method == method and found:
                break
        else:
            self.send(request, 404, b'{"detail": "no such call"}')
            return
        if call.name != "login" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(request, 401, b'{"detail": "Not authenticated"}')
            return
        if self.before:
            self.before(call.name)
            if not self.open:
                request.close_connection = True
                return
        self.called.append(call.name)
        names = {name: unquote(text) for name, text in found.groupdict().items()}
        given = {
            name: values if name in ("slots", "project_uid") else values[0] for name, values in query.items()
        }
        try:
            told = getattr(self, call.name.replace(".", "_"))(*names.values(), body=body, **given)
        except Refused as refusal:
            self.send(request, refusal.args[0], json.dumps({"detail": refusal.args[1]}).encode())
            return
        if isinstance(told, Dataset):
            self.send(request, 200, b"".join(told.stream()), CSDAT)
        else:
            self.send(request, 200, json.dumps(told, default=_plain).encode())

    def body_of(self, request):
        if request.headers.get("Transfer-Encoding") != "chunked":
            return request.rfile.read(int(request.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(request.rfile.readline(), 16):
            chunks.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        return b"".join(chunks)

    def send(self, request, code, content, kind=JSON):
        request.send_response(code)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    # What it answers.

    def login(self, body):
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if (form["username"], form["password"]) != (EMAIL, sha256(PASSWORD.encode()).hexdigest()):
            raise Refused(401, "Incorrect username or password")
        return Token(access_token=TOKEN, token_type="bearer")

    def users_me(self, body):
        return User(name="ali", first_name="Ali", last_name="Baba")

    def config_get_version(self, body):
        return self.version

    def project(self):
        return Project(
            uid="P3",
            project_dir=str(self.folder),
            owner_user_id="u",
            title="",
            size_last_updated=NOW,
            uid_num=3,
        )

    def workspace(self):
        return Workspace(uid="W1", project_uid="P3", workspace_type="base", uid_num=1, project_uid_num=3)

    def projects_find(self, body, **_):
        return [self.project()]

    def projects_find_one(self, project_uid, body):
        self.check(project_uid)
        return self.project()

    def projects_get_directory(self, project_uid, body):
        return str(self.folder)

    def workspaces_find(self, body, **_):
        return [self.workspace()]

    def workspaces_find_one(self, project_uid, workspace_uid, body):
        self.check(project_uid)
        if workspace_uid != "W1":
            raise Refused(404, f"Workspace {workspace_uid} does not exist")
        return self.workspace()

    def jobs_find(self, body, **_):
        return list(self.jobs.values())

    def jobs_find_one(self, project_uid, job_uid, body):
        self.check(project_uid)
        if job_uid not in self.jobs:
            raise Refused(404, f"Job {job_uid} does not exist")
        return self.jobs[job_uid]

    def jobs_get_directory(self, project_uid, job_uid, body):
        return str(self.folder / job_uid)

    def jobs_create(self, project_uid, workspace_uid, body, type, title="", description=""):
        self.workspaces_find_one(project_uid, workspace_uid, b"")
        uid = f"J{max(30, *(int(uid[1:]) for uid in self.jobs)) + 1}"
        self.add_job(uid, type, title)
        (self.folder / uid).mkdir()
        return self.jobs[uid]

    def jobs_add_external_input(self, project_uid, job_uid, input_name, body):
        told = json.loads(body)
        slots = [_input_slot(slot) for slot in told["slots"]]
        job = self.jobs_find_one(project_uid, job_uid, b"")
        given = {name: told[name] for name in ("type", "title", "count_min", "count_max") if name in told}
        job.spec.inputs.root[input_name] = Input(slots=slots, **given)
        return job

    def jobs_connect(self, project_uid, job_uid, input_name, body, source_job_uid, source_output_name):
        job, source = (self.jobs_find_one(project_uid, uid, b"") for uid in (job_uid, source_job_uid))
        have = {result.name for result in source.spec.outputs.root[source_output_name].results}
        for slot in job.spec.inputs.root[input_name].slots:
            if slot.required and slot.name not in have:
                raise Refused(422, f"{source_job_uid} {source_output_name} has no {slot.name}")
        connection = Connection(job_uid=source_job_uid, output=source_output_name)
        job.spec.inputs.root[input_name].connections.append(connection)
        return job

    def jobs_add_external_output(self, project_uid, job_uid, output_name, body):
        told = json.loads(body)
        slots = [OutputSlot(**slot) for slot in told["slots"]]
        unknown = [slot.dtype for slot in slots if slot.dtype not in FIELDS]
        if unknown:
            raise Refused(422, f"unknown slot type {unknown[0]}")
        results = [OutputResult(name=slot.name, dtype=slot.dtype) for slot in slots]
        job = self.jobs_find_one(project_uid, job_uid, b"")
        job.spec.outputs.root[output_name] = Output(
            type=told["type"],
            title=told["title"],
            slots=slots,
            passthrough=told["passthrough"],
            results=results,
        )
        return job

    def jobs_get_output_fields(self, project_uid, job_uid, output_name, body):
        job = self.jobs_find_one(project_uid, job_uid, b"")
        return [
            [f"{slot.name}/{field[0]}", *field[1:]]
            for slot in job.spec.outputs.root[output_name].slots
            for field in FIELDS[slot.dtype]
        ]

    def jobs_save_output(self, project_uid, job_uid, output_name, body, version="0", filename=None):
        job = self.jobs_find_one(project_uid, job_uid, b"")
        if job.status not in ("running", "waiting"):
            raise Refused(422, f"Job {job_uid} is {job.status}")
        dataset = Dataset.from_iterator(iter([body]))
        missing = [
            field[0]
            for field in self.jobs_get_output_fields(project_uid, job_uid, output_name, b"")
            if field[0] not in dataset
        ]
        if missing:
            raise Refused(422, f"missing fields {', '.join(missing)}")
        output = job.spec.outputs.root[output_name]
        output.num_items = len(dataset)
        self.data[job_uid, output_name] = dataset
        return job

    def jobs_load_output(self, project_uid, job_uid, output_name, body, slots=("default",), version="F"):
        job = self.jobs_find_one(project_uid, job_uid, b"")
        dataset = self.data[job_uid, output_name]
        through = job.spec.outputs.root[output_name].passthrough
        if through and job.status == "completed" and slots != ["default"]:
            connection = job.spec.inputs.root[through].connections[0]
            more = self.data[connection.job_uid, connection.output]
            # What is passed through is that of the same particles, and never what was saved.
            more = more.copy().drop_fields([name for name in dataset if name != "uid"])
            dataset = Dataset.innerjoin_many(dataset, more)
        return dataset

    def jobs_mark_running(self, project_uid, job_uid, body, status="running"):
        job = self.jobs_find_one(project_uid, job_uid, b"")
        if self.once_over == "no" and job.status in ("completed", "failed", "killed"):
            raise Refused(422, f"Job {job_uid} is {job.status}")
        job.status = status
        return job

    def jobs_mark_failed(self, project_uid, job_uid, body, error=""):
        job = self.jobs_find_one(project_uid, job_uid, b"")
        job.status = "failed"
        self.log.append(TextEvent(project_uid=project_uid, job_uid=job_uid, type="error", text=error))
        return job

    def jobs_mark_completed(self, project_uid, job_uid, body):
        job = self.jobs_find_one(project_uid, job_uid, b"")
        job.status = "completed"
        return job

    def jobs_add_event_log(self, project_uid, job_uid, body, type="text"):
        text = json.loads(body)
        event = TextEvent(
            _id=f"{len(self.log):024x}", project_uid=project_uid, job_uid=job_uid, type=type, text=text
        )
        self.log.append(event)
        return event

    def jobs_update_event_log(self, project_uid, job_uid, event_id, body, type="text"):
        event = self.log[int(event_id, 16)]
        event.text = json.loads(body)
        return event

    def jobs_add_image_log(self, project_uid, job_uid, body, text, flags=()):
        images = [GridFSAsset(**asset) for asset in json.loads(body)]
        event = ImageEvent(project_uid=project_uid, job_uid=job_uid, type="image", text=text, images=images)
        self.log.append(event)
        return event

    def assets_upload(self, project_uid, job_uid, body, filename, format):
        asset = GridFSAsset(fileid=f"{len(self.assets):024x}", filename=filename, filetype=format)
        self.assets[asset.filename] = body
        return asset

    def sessions_find_one(self, project_uid, session_uid, body):
        self.check(project_uid)
        if session_uid != "S1":
            raise Refused(404, f"Session {session_uid} does not exist")
        stats = SessionStats(total_extracted_particles=len(self.extracted), total_accepted=1)
        known = {
            "uid": "W1",
            "project_uid": "P3",
            "workspace_type": "live",
            "uid_num": 1,
            "project_uid_num": 3,
        }
        more = {"session_uid": "S1", "session_dir": "S1", "session_uid_num": 1, "errors": []}
        return Session(**known, **more, stats=stats)

    def sessions_create_and_enqueue_export_particles(self, project_uid, session_uid, body):
        uid = f"J{max(30, *(int(uid[1:]) for uid in self.jobs)) + 1}"
        self.add_job(uid, "live_particle_export")
        self.add_output(uid, "exported", self.extracted)
        return self.jobs[uid]

    # What a test tells it.

    def check(self, project_uid):
        if project_uid != "P3":
            raise Refused(404, f"Project {project_uid} does not exist")

    def add_job(self, uid, type="extract_micrographs_multi", title=""):
        self.jobs[uid] = Job(
            uid=uid,
            project_uid="P3",
            spec=JobSpec(type=type, ui_tile_width=1, ui_tile_height=1, resource_spec=ResourceSpec()),
            job_dir=uid,
            job_dir_size_last_updated=NOW,
            uid_num=int(uid[1:]),
            project_uid_num=3,
            status_num=0,
            build_errors=[],
            title=title,
        )

    def add_output(self, uid, name, rows, type="particle"):
        """Give a job an output that holds a structured array."""
        if uid not in self.jobs:
            self.add_job(uid)
        dataset = Dataset(np.asarray(rows))
        results = [OutputResult(name=prefix, dtype=prefix) for prefix in dataset.prefixes()]
        self.jobs[uid].spec.outputs.root[name] = Output(type=type, title=name, results=results)
        self.jobs[uid].status = "completed"
        self.data[uid, name] = dataset


def _input_slot(slot):
    return InputSlot(**slot) if isinstance(slot, dict) else InputSlot(name=slot, dtype=slot, required=True)


def _plain(model):
    return model.model_dump(mode="json", by_alias=True)


def serve_folder(folder, port):
    """Serve the project of a folder: the particles of J24 as their files have them."""
    folder = Path(folder).resolve()
    own, more = (
        np.load(folder / f"J24/cryosparc_P12_J24_{name}.cs")
        for name in ("particles", "passthrough_particles")
    )
    standin = StandIn(folder, port)
    joined = Dataset.innerjoin_many(Dataset(own), Dataset(more))
    standin.add_output("J24", "particles", joined.to_records(fixed=True))
    standin.http.serve_forever()


if __name__ == "__main__":
    serve_folder(sys.argv[1], int(sys.argv[2]))

"""The process at the other end of `sparse_model.data.processes`: works on parts as they come over a socket."""

import sys
import traceback
from multiprocessing.connection import Connection

from sparse_model.data.corpora import Part
from sparse_model.data.parts import PartRecord
from sparse_model.data.processes import Work
from sparse_model.errors import InputError


def serve(connection: Connection) -> None:
    """Answer each part with its record or an exception, until the caller hangs up or is gone."""
    try:
        work: Work = connection.recv()
        while True:
            part: Part = connection.recv()
            connection.send(_outcome(work, part))
    except (EOFError, ConnectionError):
        return


def _outcome(work: Work, part: Part) -> PartRecord | Exception:
    try:
        return work(part)
    except InputError as error:
        return type(error)(str(error))  # without its cause, which may not go over the socket
    except Exception:
        return RuntimeError(f"tokenising part {part.index} failed:\n{traceback.format_exc()}")


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))

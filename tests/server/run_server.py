"""A server process for the tests: `python run_server.py '{"engine": {...}, "server": {...}}'`."""

import json
import sys

from jaxserve.core.config import EngineArgs
from server.app import serve
from server.args import ServerArgs

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.exit(serve(EngineArgs(**asked["engine"]), ServerArgs(**asked["server"])))

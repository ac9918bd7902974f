"""`python -m tests.das.worker_process JOB.json`: says it is ready, waits for a line, works."""

import json
import sys
from pathlib import Path

from keras_exfm.das import Job, Worker

if __name__ == "__main__":
    worker = Worker(Job.parse(json.loads(Path(sys.argv[1]).read_text())))
    print("ready", flush=True)
    sys.stdin.readline()
    steps = worker.run(ended=True)
    worker.close()
    print(json.dumps([[s.kind, s.name, s.hour, s.committed] for s in steps]), flush=True)

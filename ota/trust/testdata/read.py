# Reads the repository at the address argv[1] with python-tuf's client, from
# the root in the file argv[2], and prints length and sha256 of target argv[3].
import sys
import tempfile

from tuf.ngclient import Updater

url, root, target = sys.argv[1:]
with tempfile.TemporaryDirectory() as state, open(root, "rb") as f:
    updater = Updater(state, url, bootstrap=f.read())
    updater.refresh()
    info = updater.get_targetinfo(target)
    print(info.length, info.hashes["sha256"], info.custom["counter"])

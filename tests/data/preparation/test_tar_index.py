"""Random access to files in tars."""

import io
import tarfile

import ilsvrc
from hypothesis import given, settings
from hypothesis import strategies as st

from effv2_jax.data.preparation.tar_index import read_member, tar_members

# A tree of names to bytes or to such a tree, which becomes a tar inside the tar.
trees = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b/c", "d" * 120, "é"]), st.binary(max_size=2000), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["x.tar", "y.tar"]), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(trees)
def test_members_of_nested_tars_are_at_their_offsets(tmp_path_factory, tree):
    def pack(tree):
        return ilsvrc.tar_of({name: pack(part) if isinstance(part, dict) else part for name, part in tree.items()})

    def flat(tree, prefix=""):
        for name, part in tree.items():
            if isinstance(part, dict):
                yield from flat(part, prefix + name.removesuffix(".tar") + "/")
            else:
                yield prefix + name, part

    path = tmp_path_factory.mktemp("tars") / "whole.tar"
    path.write_bytes(pack(tree))
    found = {member.name: read_member(str(path), member.offset, member.size) for member in tar_members(str(path))}
    assert found == dict(flat(tree))


def test_pax_headers_and_links_in_a_tar(tmp_path):
    path = tmp_path / "whole.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("./folder/" + "ü" * 200 + ".jpg", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "folder"
        tar.addfile(link)
    [member] = tar_members(str(path))
    assert member.name.startswith("folder/ü") and read_member(str(path), member.offset, member.size) == b"abc"

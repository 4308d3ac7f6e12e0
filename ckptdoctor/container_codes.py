"""What the codes mean that are found while a file is read: the pages that rules bring themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["CONTAINER_PAGES", "ContainerPage"]


class ContainerPage(NamedTuple):
    """Documentation of one code: an error, but for what ``unless`` says."""

    unless: str
    text: str
    references: tuple[str, ...]


CONTAINER_PAGES: Mapping[str, ContainerPage] = {
    "CK001": ContainerPage(
        "a note where the archive states no checksum",
        """A stored checksum differs from its data.

        What it means
        -------------
        The archive keeps a CRC-32 of each member, and the bytes that are there now are not those
        it was taken of.  Of a member that holds a tensor, at least one value differs from what
        was saved.  torch.load does not look at these checksums, so such a file loads without a
        word.  Where an archive states none (zero for data that is not empty), nothing guards it,
        and that is a note.

        How it happens
        --------------
        A bit that flipped on a disk, in memory or on the way; a download that was resumed at the
        wrong place; a tool that changed values in place and left the checksum; a file that was
        still being written.

        When to ignore it
        -----------------
        Where the values were changed on purpose, by a tool that you know.  Otherwise take the file
        from where it came from and compare its size and its sha256.
        """,
        (
            "PKWARE APPNOTE 6.3.10, section 4.4.7: CRC-32 of a zip member",
            "PyTorch, torch.serialization.set_crc32_options: archives written without checksums",
        ),
    ),
    "CK002": ContainerPage(
        "a warning for Keras Lambda layers and NumPy object arrays, a note for classes to trust",
        """Loading it can run code, or needs more than tensors.

        What it means
        -------------
        A pickle is a program, and loading it the usual way runs that program.  This one names
        something besides what rebuilding tensors needs: a function of the standard library, of
        torch or NumPy, a name that is computed while it loads, or the code of a Keras Lambda
        layer.  An error is what no checkpoint has a reason to hold, or what can run whatever its
        author wants, and it makes the `load` verdict `unsafe`.  A note lists classes of third
        parties or of torch.nn that the loader needs to be installed and that you have to trust.
        ckptdoctor ran none of it.

        How it happens
        --------------
        A whole module or a training state with custom objects was pickled instead of a state
        dict; a Keras model has a Lambda layer; or somebody wants code to run where the file is
        loaded.

        When to ignore it
        -----------------
        A note, where you know the classes it lists.  An error, never because of the file's origin
        alone: convert the file to safetensors where it cannot harm, or load it with
        `weights_only=True` (PyTorch) or `safe_mode=True` (Keras).  No selection of codes and no
        exemption changes the `load` verdict.
        """,
        (
            "Python documentation, pickle: 'The pickle module is not secure'",
            "PyTorch documentation, torch.load: weights_only",
            "Keras documentation, keras.saving.load_model: safe_mode",
        ),
    ),
    "CK003": ContainerPage(
        "a warning or a note for what is surplus, or missing and not needed",
        """A shard, key or member is missing, or one too many.

        What it means
        -------------
        The checkpoint lists more, or less, than there is: an index names a shard that is not in
        the folder, a shard lacks a tensor that the index promises, a Keras file lists layers or
        variables that it does not hold, an archive lacks a storage.  What is missing cannot be
        judged, so it counts as an error.  What is there and listed nowhere is a warning: loaders
        pass it by, and it may be the older half of another checkpoint.

        ``preflight`` also knows what belongs to the model, from a Hugging Face ``config.json``
        beside the file, the configuration inside a Keras file, or the names that are expected.
        Weights that are missing, have another shape, or have words in front that no loader looks
        for are errors then: many loaders leave such weights at random values and say so in a line
        of their log at most.

        How it happens
        --------------
        A download or a copy that stopped half way; shards of two runs in one folder; an index
        edited by hand; a save that was interrupted; tensors dropped by a conversion; a wrapped or
        compiled model that was saved (``module.``, ``_orig_mod.``); a ``config.json`` of another
        size of the model.

        When to ignore it
        -----------------
        A surplus, where you know where it comes from.  Something missing, only where the model
        that will load it does not have that part.
        """,
        (
            "Hugging Face Transformers documentation: sharded checkpoints and their index",
            "Keras documentation, keras.Model.load_weights: skip_mismatch",
        ),
    ),
    "CK004": ContainerPage(
        "",
        """Data that was declared is not there.

        What it means
        -------------
        The file describes a tensor, but its bytes run past the end of the file, were never
        written, or are fewer than its shape needs.  Readers then refuse, or fill in zeros: HDF5
        returns its fill value for a chunk that was never written, without a word.

        How it happens
        --------------
        A full disk, a quota, a job that was killed while it saved, a download or an upload that
        was cut off, a process that still has the file open.

        When to ignore it
        -----------------
        Never: take an earlier checkpoint, or fetch the file again and compare its size.
        """,
        (
            "HDF5 documentation, fill values and storage allocation time",
            "safetensors format: offsets of the data and the size of the buffer",
        ),
    ),
    "CK005": ContainerPage(
        "a warning where readers agree about the tensors all the same",
        """Duplicates, overlaps, contradictions: readers disagree about it.

        What it means
        -------------
        The structure says two things at once: two members or keys of one name, tensors that share
        bytes they should not, headers that contradict the directory, a file that is two formats
        in one, bytes behind the end.  Two programs can read different tensors from it, so what a
        scanner saw need not be what is served.  Structures that would keep a loader busy without
        end or exhaust its memory are reported here too, and make the `load` verdict `unsafe`.

        How it happens
        --------------
        A tool with a bug, an archive that was appended to instead of rewritten, two files glued
        together, damage; or the wish to show a scanner another file than the loader sees.

        When to ignore it
        -----------------
        A warning, where you know the tool that wrote it so.  An error: save it again with the
        framework's own writer, from a source that you trust.
        """,
        (
            "PKWARE APPNOTE 6.3.10, section 4.3: general format of a zip file",
            "safetensors format: no duplicate keys, no holes, no overlapping tensors",
        ),
    ),
    "CK006": ContainerPage(
        "a warning for links inside the file",
        """It points to other files.

        What it means
        -------------
        Part of the checkpoint is not in it: an HDF5 external link, external storage or a virtual
        dataset names another file, or an index names a shard outside its folder.  A loader that
        follows it reads a file that the author chose, from the machine it runs on.  ckptdoctor
        follows none of them, so those tensors are not judged.  Soft links inside the same file
        are a warning: they are not followed either, and hide which tensor is meant.

        How it happens
        --------------
        Files that were assembled with links to save space, or moved without what they point to;
        rarely, a file made to read others.

        When to ignore it
        -----------------
        Links inside the file, where the tensors they lead to are listed by their own names.  Others
        never: copy the data into one file (h5repack, h5copy) where you trust it.
        """,
        (
            "HDF5 documentation: external links, external storage, virtual datasets",
            "Hugging Face Transformers documentation: sharded checkpoints and their index",
        ),
    ),
}
"""By code; the texts have the sections that rules have in their docstrings."""

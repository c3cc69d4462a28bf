"""Stores that keep all promises but one, and the test of the conformance suite that finds each out."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any, NamedTuple

from broken import (
    NARROW,
    NOBODY,
    a_clock,
    a_second_later,
    all_went_well,
    always_something,
    an_empty_page,
    answering,
    appends,
    as_far_as_it_goes,
    asking,
    backwards,
    by_halves,
    by_name,
    clears_the_way,
    closes_once,
    commits_everything,
    commits_what_there_is,
    deletes_all,
    deletes_trees,
    digest_of_now,
    each_block,
    each_entry,
    each_page,
    empty_is_missing,
    entries_of_now,
    files_alone,
    fills_gaps,
    first_counts,
    first_page,
    from_the_start,
    goes_through_links,
    halves,
    halves_from,
    into_file_of_now,
    into_the_wrong_place,
    is_late,
    keeps_the_buffer,
    leaves_a_trace,
    less_than_hinted,
    links_are_copies,
    minds_modes,
    minds_what_is_gone,
    missing_is_empty,
    needs_parents,
    no_zeros,
    not_found_if_gone,
    nothing_if_gone,
    of_now,
    one_at_a_time,
    opens_what_is_there,
    or_raise,
    pads,
    raises_faults,
    refuses_unknown,
    remembered,
    removes_first,
    renamed,
    says_nothing,
    scan_with,
    shares_a_buffer,
    somebody_elses,
    stays_open,
    then_writes,
    through_links,
    tidies_names,
    told,
    undoes_a_commit,
    upload_like,
    upload_with,
    visible_at_once,
    whatever_it_is,
    without,
    without_faults,
    writes_a_probe,
    writes_to_the_target,
    zeros,
)

from fastsync.backend import Entry
from fastsync.location import parse
from fastsync.testing.vocabulary import MTIME


class Mutant(NamedTuple):
    """A store of `kind` that breaks what `test` is about: methods of the store, of an upload, a download."""

    test: str
    how: str
    store: Mapping[str, Any] = {}
    upload: Mapping[str, Any] = {}
    download: Mapping[str, Any] = {}
    kind: str = "memory"

    def __str__(self) -> str:
        return f"{self.test}: {self.how}"


MUTANTS = (
    Mutant("test_facts", "limits that no part fits", {"limits": NARROW}),
    Mutant("test_facts", "another location", {"location": parse("mem://other")}),
    Mutant("test_closing_twice", "the second time is an error", {"aclose": closes_once}),
    Mutant("test_two_stores_see_the_same", "listings are remembered", {"scan": remembered}, kind="bare"),
    Mutant("test_address", "one for all", {"address": lambda _whole: "mem://one"}),
    Mutant("test_an_empty_place_lists_nothing", "empty is missing", {"scan": empty_is_missing}),
    Mutant("test_a_missing_place", "missing is empty", {"scan": missing_is_empty}),
    Mutant("test_a_missing_place", "always an error", {"scan": scan_with(missing_ok=False)}),
    Mutant("test_a_place_that_is_a_file", "lists as empty", {"scan": missing_is_empty}),
    Mutant("test_listing_order", "by name alone", {"scan": each_page(by_name)}),
    Mutant("test_listing_order", "backwards", {"scan": each_page(backwards)}),
    Mutant(
        "test_directories_are_listed_all_or_not_at_all", "top ones alone",
        {"scan": each_entry(lambda e: None if e.kind == "dir" and "/" in e.path else e)},
    ),
    Mutant("test_pages", "the first page alone", {"scan": first_page}),
    Mutant("test_pages", "an empty page", {"scan": an_empty_page}),
    Mutant("test_entries", "no sizes", {"scan": each_entry(without(size=0))}),
    Mutant("test_entries", "no times", {"scan": each_entry(without(mtime_ns=None))}),
    Mutant("test_entries", "owners nobody asked for", {"scan": each_entry(without(owner=NOBODY))}),
    Mutant("test_the_same_state_lists_the_same", "times of listing", {"scan": each_entry(a_clock)}),
    Mutant("test_listing_one_level", "all levels", {"scan": scan_with(recursive=True)}),
    Mutant("test_prune", "pruned ones are entered", {"scan": scan_with(prune=None)}),
    Mutant("test_listings_at_once_and_left_early", "one at a time", {"scan": one_at_a_time}),
    Mutant("test_cancelled_listing", "never freed", {"scan": one_at_a_time}),
    Mutant("test_plain_names", "+ is a space", {"scan": renamed(lambda p: p.replace("+", " "))}),
    Mutant("test_plain_names", "% is decoded", {"scan": renamed(lambda p: p.replace("%2F", "/"))}),
    Mutant("test_odd_names", "spaces are cut off", {"scan": renamed(str.strip)}),
    Mutant("test_odd_names", "255 bytes are too many", {"scan": renamed(lambda path: path[:200])}),
    Mutant("test_a_hint_where_to_look", "less than asked", {"scan": each_page(less_than_hinted)}),
    Mutant(
        "test_a_version_is_of_one_content", "one for all", {"scan": each_entry(without(version="1"))}
    ),
    Mutant("test_stat", "another size", {"stat": answering(without(size=1))}),
    Mutant("test_stat_of_a_directory", "not there", {"stat": files_alone}),
    Mutant("test_stat_of_nothing", "something", {"stat": always_something}),
    Mutant("test_read_whole", "a bit flipped", {"read": each_block(lambda b: b[:-1] + b"!")}),
    Mutant("test_read_whole", "a byte too few", {"read": each_block(lambda b: b[:-1])}),
    Mutant("test_read_ranges", "from the start", {"read": from_the_start}),
    Mutant("test_fewer_bytes_never_pass_silently", "they do", {"read": as_far_as_it_goes}),
    Mutant("test_read_of_a_changed_file", "the new one", {"read": of_now}),
    Mutant("test_read_of_a_vanished_file", "nothing", {"read": nothing_if_gone}),
    Mutant("test_read_of_a_vanished_file", "another error", {"read": not_found_if_gone}),
    Mutant("test_change_while_reading", "a mix", {"read": by_halves}),
    Mutant("test_read_left_early", "never freed", {"read": stays_open}),
    Mutant("test_digest", "upper case", {"digest": answering(str.upper)}),
    Mutant("test_digest", "of what is there now", {"digest": digest_of_now}),
    Mutant("test_read_into_file", "at the wrong place", {"read_into_file": into_the_wrong_place}),
    Mutant("test_read_into_file", "no progress", {"read_into_file": says_nothing}),
    Mutant(
        "test_read_into_file_of_a_changed_file", "the new one", {"read_into_file": into_file_of_now}
    ),
    Mutant("test_open_file", "the new one", {"open_file": opens_what_is_there}, kind="local"),
    # Writing.
    Mutant("test_write", "an entry of another size", upload={"commit": answering(without(size=1))}),
    Mutant("test_parts_in_any_order_and_at_once", "as they come", upload={"write": appends}),
    Mutant(
        "test_a_buffer_is_ours_again_after_write", "it is kept",
        upload={"write": keeps_the_buffer, "commit": then_writes},
    ),
    Mutant("test_reading_back", "zeros", upload={"read_back": zeros}, kind="local"),
    Mutant("test_a_part_written_again", "the first one counts", upload={"write": first_counts}),
    Mutant("test_write_options", "holes are lost", upload={"write": no_zeros}),
    Mutant("test_parents_are_made", "they are not", {"upload": needs_parents}),
    Mutant("test_invisible_until_commit", "an empty file shows", {"upload": visible_at_once}),
    Mutant("test_abort", "it commits", upload={"abort": commits_what_there_is}),
    Mutant("test_abort_after_commit", "it undoes", upload={"abort": undoes_a_commit}),
    Mutant("test_commit_with_a_gap", "filled with zeros", upload={"commit": fills_gaps}),
    Mutant("test_commit_of_fewer_bytes", "all of them", upload={"commit": commits_everything}),
    Mutant("test_two_uploads_of_one_file", "the first one stays", upload={"commit": is_late}),
    Mutant("test_many_files_at_once", "a shared buffer", upload={"write": shares_a_buffer}),
    Mutant("test_cancelled_upload", "something is left", {"upload": leaves_a_trace}),
    Mutant("test_cancelled_write", "something is left", upload={"write": leaves_a_trace}),
    Mutant("test_cancelled_commit", "nothing is left", upload={"commit": removes_first}),
    Mutant("test_mtime", "rounded up", {"upload": upload_like(a_second_later)}),
    Mutant("test_mtime_not_kept", "kept", {"upload": upload_like(without(mtime_ns=MTIME))}),
    Mutant("test_mode", "executable", {"upload": upload_like(without(mode=0o755))}),
    Mutant("test_special_bits", "kept", {"upload": upload_with(special=True)}),
    Mutant("test_nothing_known_of_the_source", "refused", {"upload": refuses_unknown}),
    Mutant("test_refused_names", "tidied", {"upload": tidies_names}),
    Mutant("test_something_else_in_the_way", "it goes", {"upload": clears_the_way}),
    Mutant("test_delete", "more than asked", {"delete": deletes_all}),
    Mutant("test_delete", "nothing", {"delete": all_went_well}),
    Mutant("test_delete_nothing", "an error", {"delete": minds_what_is_gone}),
    Mutant("test_delete_directories", "with what is in them", {"delete": deletes_trees}),
    Mutant("test_delete_of_another_kind", "whatever it is", {"delete": whatever_it_is}),
    # Abilities.
    Mutant("test_copy_within", "no progress", {"copy_from": says_nothing}),
    Mutant(
        "test_copy_within", "no modes",
        {"copy_from": asking(lambda s, j, o, p: (s, j, told(o, mode=False), p))},
    ),
    Mutant(
        "test_copy_within_from_another_place", "into the source's place",
        {"copy_from": lambda whole, s, *rest: type(whole.__self__).__mro__[1].copy_from(s, s, *rest)},  # type: ignore[attr-defined]
    ),
    Mutant("test_copy_within_goes_on_after_a_failure", "it stops", {"copy_from": or_raise}),
    Mutant("test_copy_within_that_is_cancelled", "half files", {"copy_from": halves_from}),
    Mutant("test_make_directories", "none", {"make_directories": all_went_well}),
    Mutant("test_make_the_place_itself", "not made", {"make_directories": all_went_well}),
    Mutant("test_directories_stay_writable", "they do not", {"upload": minds_modes}),
    Mutant("test_directories_in_the_way", "never mind", {"make_directories": all_went_well}),
    Mutant("test_an_empty_directory_exists", "it does not", {"make_directories": all_went_well}),
    Mutant(
        "test_make_links", "tidied targets",
        {
            "make_links": asking(
                lambda jobs, o: (
                    [
                        j._replace(entry=j.entry._replace(target=posixpath.normpath(j.entry.target)))
                        for j in jobs
                    ],
                    o,
                )
            )
        },
    ),
    Mutant("test_links_replace", "they do not", {"make_links": all_went_well}),
    Mutant("test_scan_of_links", "always themselves", {"scan": scan_with(links="keep")}),
    Mutant("test_reading_a_link", "through it", {"read": through_links}),
    Mutant("test_links_that_cannot_be_followed", "not a word", {"scan": without_faults}),
    Mutant("test_links_that_cannot_be_followed", "the end of all", {"scan": raises_faults}),
    Mutant("test_writing_through_a_link", "through it", {"upload": goes_through_links}),
    Mutant("test_a_link_in_the_way", "to its target", {"upload": writes_to_the_target}),
    Mutant("test_set_attributes", "none", {"set_attributes": all_went_well}),
    Mutant(
        "test_set_only_what_is_asked", "all",
        {"set_attributes": asking(lambda jobs, o: (jobs, told(o, mtime=True, mode=True)))},
    ),
    Mutant("test_set_attributes_of_nothing", "never mind", {"set_attributes": all_went_well}),
    Mutant("test_write_from_file", "no progress", upload={"write_from_file": says_nothing}),
    Mutant("test_write_from_a_file_that_ends", "zeros", upload={"write_from_file": pads}),
    Mutant(
        "test_write_by_descriptor", "not noted", upload={"covers": lambda *_: None}, kind="local"
    ),
    Mutant(
        "test_a_gap_by_descriptor", "all counts", kind="local",
        upload={"covers": lambda whole, *_: whole(0, 7)},
    ),
    # Batches.
    Mutant(
        "test_read_a_batch", "another order", {"read_whole": answering(lambda a: a[::-1])},
        kind="objects",
    ),
    Mutant(
        "test_read_a_batch_of_which_some_changed", "the new ones", {"read_whole": entries_of_now},
        kind="objects",
    ),
    Mutant("test_write_a_batch", "nothing", {"write_whole": all_went_well}, kind="objects"),
    Mutant(
        "test_write_a_batch_without_metadata", "nothing", {"write_whole": all_went_well},
        kind="objects",
    ),
    Mutant(
        "test_write_a_batch_goes_on_after_a_failure", "it stops", {"write_whole": or_raise},
        kind="objects",
    ),
    Mutant(
        "test_write_a_batch_over_directories", "never mind", {"write_whole": all_went_well},
        kind="local",
    ),
    Mutant(
        "test_write_a_batch_that_is_cancelled", "half files", {"write_whole": halves}, kind="objects"
    ),
    Mutant("test_complete", "of what is there now", {"complete": entries_of_now}, kind="objects"),
    Mutant(
        "test_download", "another entry", kind="objects", download={"entry": Entry("a", "file", 1, 1)}
    ),
    Mutant(
        "test_download_of_a_changed_file", "the new one", {"open_download": opens_what_is_there},
        kind="objects",
    ),
    Mutant(
        "test_a_guarded_write_of_something_new", "no guard", {"upload": upload_with(guarded=False)},
        kind="objects",
    ),
    Mutant(
        "test_a_guarded_write_over_what_was_listed", "no guard",
        {"upload": upload_with(guarded=False)}, kind="objects",
    ),
    Mutant(
        "test_a_guarded_batch", "no guard", kind="objects",
        store={"write_whole": asking(lambda jobs, o: (jobs, told(o, guarded=False)))},
    ),
    Mutant("test_tickets", "for ever", upload={"ticket": "still there"}, kind="local"),
    # What a disk keeps.
    Mutant("test_owners", "always", {"scan": scan_with(owner=True)}, kind="local"),
    Mutant("test_xattrs", "none", {"write_xattrs": all_went_well}, kind="local"),
    Mutant("test_hard_links", "none", {"make_hard_links": links_are_copies}, kind="local"),
    Mutant(
        "test_identities_of_hard_links", "none", kind="local",
        store={"link_identities": answering(lambda found: [None] * len(found))},
    ),
    Mutant(
        "test_move_within", "nothing moves", kind="local",
        store={"move_from": lambda whole, _source, jobs: all_went_well(whole, jobs)},
    ),
    Mutant("test_ancestry", "nothing above", {"ancestry": lambda whole: whole()[:1]}, kind="local"),
    Mutant(
        "test_file_ids", "one for all", kind="local",
        store={"file_ids": answering(lambda found: ["1"] * len(found))},
    ),
    Mutant("test_names_that_are_one", "a probe is written", {"folds_names": writes_a_probe}, kind="local"),
    Mutant("test_leftovers", "somebody else's", {"find_leftovers": somebody_elses}, kind="local"),
)  # fmt: skip

# Abilities that servers alone have, which protocols of servers are tested with.
OF_SERVERS = frozenset(
    {
        "test_ranges_of_a_file", "test_download_into_memory", "test_validators", "test_describe",
        "test_proof", "test_bytes_in_order", "test_other_connections", "test_an_upload_goes_on",
        "test_an_upload_that_is_dropped", "test_a_place_that_exists_is_not_made", "test_versions",
        "test_a_signed_link", "test_foreseen_uploads", "test_unfinished_uploads",
    }
)  # fmt: skip

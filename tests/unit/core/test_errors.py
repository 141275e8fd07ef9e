"""What a library's error becomes on the console: one line."""

from steper_ray.core.errors import in_one_line

#: The start of what Ray 2.60 says when its memory monitor ended two workers of a training; thirty lines follow.
RAY_LOW_MEMORY = """Training failed due to controller error:
2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 65493f11) was \
23.01GB used / 23.54GB limit (0.977625), which exceeds the memory usage threshold of 0.95.
Object store memory usage: [- objects spilled: 0
- bytes in use: 1024
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/"""


def test_a_node_out_of_memory_is_named_with_what_it_used():
    assert in_one_line(RAY_LOW_MEMORY) == (
        "node 10.0.0.7 ran out of memory (23.01 of 23.54 GB), and Ray ended processes there"
    )


def test_paragraphs_become_a_line_that_ends_at_the_limit():
    assert in_one_line(ValueError("not\n  a\tnumber")) == "not a number"
    assert in_one_line("x" * 400) == "x" * 300


def test_an_error_without_words_is_named_by_its_type():
    assert in_one_line(TimeoutError()) == "TimeoutError"

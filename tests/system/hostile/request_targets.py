"""Odd methods and targets."""

from attack import HOST, Case, headed, line

CASES = [
    Case("GET", "405", line(b"/callbacks/default")),
    Case("HEAD", "405", line(b"/callbacks/default", b"HEAD"), head=True),
    Case("PUT", "405", line(b"/callbacks/default", b"PUT")),
    Case("DELETE", "405", line(b"/callbacks/default", b"DELETE")),
    Case("OPTIONS", "405", line(b"/callbacks/default", b"OPTIONS")),
    Case("OPTIONS of all", "404", line(b"*", b"OPTIONS")),
    Case("TRACE", "405", line(b"/callbacks/default", b"TRACE")),
    Case("CONNECT", "405", line(b"evil.example:443", b"CONNECT")),
    Case("CONNECT to a path", "405", line(b"/callbacks/default", b"CONNECT")),
    Case("a method nobody knows", "405", line(b"/callbacks/default", b"BREW")),
    Case("post in small letters", "405", headed().replace(b"POST", b"post", 1)),
    Case("a method with a bracket", "400", line(b"/callbacks/default", b"P{ST")),
    Case("a method with a NUL", "400", line(b"/callbacks/default", b"PO\0ST")),
    Case("an absolute target", "200", headed().replace(b" /c", b" http://hooks.example.com/c", 1)),
    Case(
        "an absolute target elsewhere",
        "200 | 4xx",
        headed().replace(b" /c", b" http://evil.example/c", 1),
    ),
    Case(
        "an absolute target, another host",
        "200",
        headed()
        .replace(b" /c", b" http://hooks.example.com/c", 1)
        .replace(HOST, b"Host: evil.example\r\n"),
    ),
    Case(
        "an absolute target of the metrics", "200 | 4xx", line(b"http://hooks.example.com/metrics")
    ),
    Case("an absolute target without a path", "200 | 4xx", line(b"http://hooks.example.com")),
    Case("an absolute target of a file", "400", line(b"file:///etc/passwd")),
    Case("a target without a slash", "400", line(b"callbacks/default")),
    Case("a fragment", "405", line(b"/callbacks/default#/metrics")),
    Case("two slashes", "200", headed().replace(b" /c", b" //c", 1)),
    Case("two slashes inside", "200", headed().replace(b"s/d", b"s//d", 1)),
    Case(
        "slashes everywhere",
        "200",
        headed().replace(b" /callbacks/default", b" ///callbacks//default//", 1),
    ),
    Case("a final slash", "200", headed().replace(b"default", b"default/", 1)),
    Case("dots", "405", line(b"/callbacks/../metrics")),
    Case("dots, escaped", "405", line(b"/callbacks/%2e%2e/metrics")),
    Case("dots and slash, escaped", "405", line(b"/callbacks/..%2fmetrics")),
    Case("a backslash", "404", line(b"/callbacks\\..\\metrics")),
    Case("a NUL, escaped", "401", headed().replace(b"default", b"default%00", 1)),
    Case("a slash, escaped", "401", headed().replace(b"default", b"a%2fb", 1)),
    Case("bytes over 127, escaped", "401", headed().replace(b"default", b"%ff", 1)),
    Case("no name of an instance", "401", headed().replace(b"default", b"", 1)),
    Case("line ends, escaped", "401", headed().replace(b"default", b"a%0d%0aX-A:%20b", 1)),
    Case("a broken escape", "401", headed().replace(b"default", b"%zz", 1)),
    Case("bytes over 127 in the target", "400", headed().replace(b"default", b"\xff\xfe", 1)),
    Case("a NUL in the target", "400", headed().replace(b"default", b"a\0b", 1)),
    Case("a blank in the target", "400", headed().replace(b"default", b"a b", 1)),
    Case("a tab in the target", "400", headed().replace(b"default", b"a\tb", 1)),
    Case("a name of 65 characters", "401", headed().replace(b"default", b"a" * 65, 1)),
    Case("a name that is markup", "401", headed().replace(b"default", b"<script>", 1)),
    Case("a query", "200", headed().replace(b"default", b"default?x=y", 1)),
    Case("two blanks in the request line", "200", headed().replace(b"POST ", b"POST  ", 1)),
    Case("a tab in the request line", "400 | 200", headed().replace(b"POST ", b"POST\t", 1)),
]

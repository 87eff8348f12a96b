%%% Python from Erlang, on a real VM: exec, eval, call, values, errors, interrupts, log, life and end.
-module(py_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

suite() ->
    [{timetrap, {seconds, 60}}].

all() ->
    [
        {group, code},
        {group, values},
        {group, errors},
        {group, interrupts},
        {group, libraries},
        {group, processes},
        {group, log},
        {group, life},
        {group, ends}
    ].

groups() ->
    [
        {code, [], [
            exec_dedents_and_keeps_names,
            exec_takes_unicode,
            eval_sees_locals_in_comprehensions,
            eval_refuses_locals_that_are_no_names,
            call_takes_args_and_kwargs,
            call_follows_dotted_names,
            call_imports_from_added_path,
            current_folder_is_last_on_the_path,
            cast_runs_and_logs_its_failure,
            version_is_that_of_the_interpreter,
            bad_arguments_are_badarg
        ]},
        {values, [], [
            every_kind_of_term_crosses,
            integers_of_any_size_cross,
            atoms_of_any_alphabet_cross,
            pids_and_refs_are_opaque,
            python_subclasses_convert_as_their_base,
            python_makes_no_atoms,
            what_python_cannot_have_is_refused,
            what_erlang_cannot_have_is_refused,
            errors_never_show_an_objects_str,
            depth_is_bounded_both_ways,
            size_is_bounded_both_ways
        ]},
        {errors, [], [
            exceptions_of_every_kind_are_answers,
            tracebacks_name_the_users_lines,
            deep_recursion_is_an_error_on_every_thread
        ]},
        {interrupts, [], [
            timeout_interrupts_a_busy_loop,
            interrupt_never_hits_the_next_call,
            endless_str_of_an_exception_is_interrupted,
            sleeping_code_is_interrupted_when_it_wakes,
            death_of_the_caller_interrupts_its_call,
            dead_callers_queued_calls_never_run,
            timed_out_queued_call_never_runs,
            full_queue_answers_overload,
            race_of_answers_and_timeouts_leaves_nothing_behind
        ]},
        {libraries, [], [
            standard_libraries_with_native_parts_work,
            subprocess_exit_codes_are_right,
            asyncio_runs_on_a_call_thread,
            multiprocessing_works,
            forked_child_never_comes_back,
            signal_handlers_cannot_be_taken,
            standard_input_is_not_the_shells
        ]},
        {processes, [], [
            send_reaches_pids_and_names,
            send_to_nobody_is_an_error_only_for_names,
            send_reaches_another_node,
            whereis_finds_names
        ]},
        {log, [], [
            log_records_reach_the_logger_with_level_and_traceback,
            uncaught_exceptions_are_logged,
            flood_of_log_lines_is_bounded_and_counted,
            log_receiver_survives_bad_messages
        ]},
        {life, [], [
            application_restarts_ten_times,
            stop_answers_what_waits_and_interrupts_what_runs,
            bad_settings_are_named,
            python_of_another_version_is_refused,
            python_that_cannot_run_is_refused,
            virtual_environment_is_used,
            our_package_wins_over_an_installed_wheel,
            library_survives_load_file,
            library_survives_delete_and_purge
        ]},
        {ends, [], [
            halt_with_busy_threads_keeps_its_status,
            init_stop_with_busy_threads_keeps_its_status,
            init_stop_while_python_calls_erlang_keeps_its_status,
            the_library_can_be_purged_while_python_calls_erlang,
            interrupt_signal_with_busy_threads_ends_cleanly
        ]}
    ].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    Before = resources(),
    [{resources, Before} | Config].

end_per_suite(Config) ->
    Before = ?config(resources, Config),
    wait_until(fun() -> no_more_than(Before, resources()) end, {leak, Before, fun resources/0}),
    ok = application:stop(py_reactor).

init_per_testcase(_Case, Config) ->
    {ok, _} = application:ensure_all_started(py_reactor),
    Config.

end_per_testcase(_Case, _Config) ->
    {messages, []} = process_info(self(), messages),
    ok.

%%--------------------------------------------------------------------------------------------------
%% Code

exec_dedents_and_keeps_names(_Config) ->
    ok = py:exec(
        "\n"
        "        kept = 40\n"
        "        def plus(n):\n"
        "            return kept + n\n"
        "    "
    ),
    ?assertEqual({ok, 42}, py:eval("plus(2)")),
    ?assertEqual({ok, 43}, py:call('__main__', plus, [3])),
    ?assertEqual({ok, 44}, py:call(<<"__main__">>, <<"plus">>, [4])).

exec_takes_unicode(_Config) ->
    ok = py:exec(<<"word = 'żółw'"/utf8>>),
    ?assertEqual({ok, <<"żółw"/utf8>>}, py:eval("word")),
    ok = py:exec("word = '" ++ [380] ++ "'"),
    ?assertEqual({ok, <<"ż"/utf8>>}, py:eval("word")).

eval_sees_locals_in_comprehensions(_Config) ->
    ?assertEqual(
        {ok, [11, 12]}, py:eval("[x + k for x in xs]", #{xs => [1, 2], <<"k">> => 10})
    ),
    ?assertEqual({ok, 5}, py:eval(" (lambda: n)()\n", #{n => 5}, 1000)),
    {error, {<<"NameError">>, _, _}} = py:eval("xs").

eval_refuses_locals_that_are_no_names(_Config) ->
    {error, {<<"TypeError">>, _, _}} = py:eval("1", #{1 => 2}).

call_takes_args_and_kwargs(_Config) ->
    ok = py:exec("def collect(*args, **kwargs): return (args, kwargs)"),
    ?assertEqual(
        {ok, {{1, <<"two">>}, #{<<"three">> => 3}}},
        py:call('__main__', collect, [1, two], #{three => 3})
    ),
    ?assertEqual({ok, {{}, #{}}}, py:call('__main__', collect, [], #{}, infinity)),
    {error, {<<"TypeError">>, _, _}} = py:call('__main__', collect, [], #{1 => 2}).

call_follows_dotted_names(_Config) ->
    ?assertEqual({ok, <<"A">>}, py:call(builtins, 'str.upper', [a])),
    ?assertEqual({ok, <<"a/b">>}, py:call(<<"os.path">>, join, [a, b])),
    {error, {<<"AttributeError">>, _, _}} = py:call(os, 'path.nothing', []),
    {error, {<<"ModuleNotFoundError">>, _, _}} = py:call(no_such_module, f, []),
    {error, {<<"TypeError">>, _, _}} = py:call(sys, path, []).

call_imports_from_added_path(Config) ->
    Folder = ?config(priv_dir, Config),
    ok = file:write_file(filename:join(Folder, "added_module.py"), "def f(): return 'here'\n"),
    ok = py:add_path(Folder),
    ok = py:add_path(list_to_binary(Folder)),
    ?assertEqual({ok, <<"here">>}, py:call(added_module, f, [])).

current_folder_is_last_on_the_path(_Config) ->
    ?assertEqual({ok, <<>>}, py:eval("__import__('sys').path[-1]")),
    {ok, First} = py:eval("__import__('sys').path[0]"),
    ?assert(filelib:is_file(filename:join([First, "erlang", "__init__.py"]))).

cast_runs_and_logs_its_failure(_Config) ->
    with_log(fun() ->
        ok = py:cast(erlang, send, [self(), <<"from cast">>]),
        receive
            <<"from cast">> -> ok
        end,
        ok = py:cast(operator, truediv, [1, 0]),
        #{level := error, msg := {report, #{python := Text}}} = next_log(),
        ?assertMatch({_, _}, binary:match(Text, <<"ZeroDivisionError">>))
    end).

version_is_that_of_the_interpreter(_Config) ->
    {ok, Version} = py:version(),
    ?assertMatch({match, _}, re:run(Version, "^3\\.[0-9]+\\.[0-9]+")).

bad_arguments_are_badarg(_Config) ->
    ?assertError(badarg, py:exec(not_code)),
    ?assertError(badarg, py:exec(<<255>>)),
    ?assertError(badarg, py:call(1, f, [])),
    ?assertError(badarg, py:call(os, "", [])),
    ?assertError(badarg, py:call(os, f, [1 | 2])),
    ?assertError(badarg, py:call(os, f, not_a_list)),
    ?assertError(badarg, py:call(os, f, [], not_a_map)),
    ?assertError(badarg, py:call(os, f, [], #{}, -1)),
    ?assertError(badarg, py:eval("1", #{}, soon)),
    ?assertError(badarg, py:cast(os, f, not_a_list)).

%%--------------------------------------------------------------------------------------------------
%% Values

every_kind_of_term_crosses(_Config) ->
    [
        ?assertEqual({Term, {ok, Back}}, {Term, same(Term)})
     || {Term, Back} <- [
            {1, 1},
            {-1, -1},
            {1.5, 1.5},
            {-0.0, -0.0},
            {1.0e308, 1.0e308},
            {true, true},
            {false, false},
            {none, none},
            {undefined, none},
            {nil, none},
            {word, <<"word">>},
            {'', <<>>},
            {<<>>, <<>>},
            {<<"text">>, <<"text">>},
            {<<0>>, <<0>>},
            {{bytes, <<255>>}, <<255>>},
            {{bytes, <<>>}, <<>>},
            {{bytes, 1}, {<<"bytes">>, 1}},
            {[], []},
            {"ab", [97, 98]},
            {{}, {}},
            {{1, {2}}, {1, {2}}},
            {#{}, #{}},
            {#{a => [1], 2 => #{}}, #{<<"a">> => [1], 2 => #{}}},
            {#{{1, 2} => 3}, #{{1, 2} => 3}},
            {#{true => 1, none => 2}, #{true => 1, none => 2}}
        ]
    ],
    {ok, [<<"bool">>, <<"NoneType">>, <<"str">>, <<"bytes">>, <<"str">>]} =
        py:eval("[type(x).__name__ for x in xs]", #{
            xs => [true, undefined, word, {bytes, <<"b">>}, <<"t">>]
        }).

integers_of_any_size_cross(_Config) ->
    Integers = [
        Sign * ((1 bsl Bits) + Offset)
     || Bits <- [7, 8, 31, 32, 58, 59, 60, 62, 63, 64, 65, 127, 128, 2039, 2040, 2041, 100000],
        Offset <- [-1, 0, 1],
        Sign <- [1, -1]
    ],
    [
        begin
            ?assertEqual({ok, N}, same(N)),
            ?assertEqual({ok, integer_to_binary(N, 16)}, py:eval("format(n, 'X')", #{n => N}))
        end
     || N <- Integers
    ],
    {error, {<<"ValueError">>, _, _}} = py:eval("1 << (8 * 600_000)"),
    {error, {<<"ValueError">>, _, _}} = py:eval("-(1 << (8 * 600_000))").

atoms_of_any_alphabet_cross(_Config) ->
    Atoms = ['é', 'żółw', '日本', list_to_atom(lists:duplicate(255, $é)), list_to_atom([0, 1])],
    [?assertEqual({ok, atom_to_binary(Atom)}, same(Atom)) || Atom <- Atoms],
    [
        ?assertEqual(
            {ok, Atom}, py:eval("__import__('erlang').Atom(a)", #{a => atom_to_binary(Atom)})
        )
     || Atom <- [ok, '', 'with space' | Atoms]
    ].

pids_and_refs_are_opaque(_Config) ->
    Ref = make_ref(),
    ?assertEqual({ok, [self(), Ref]}, same([self(), Ref])),
    ?assertEqual({ok, #{self() => Ref}}, same(#{self() => Ref})),
    {ok, true} = py:eval("a == b and hash(a) == hash(b) and a != c", #{
        a => self(), b => self(), c => whereis(init)
    }),
    {ok, <<"<erlang.Pid ", _/binary>>} = py:eval("repr(p)", #{p => self()}),
    {ok, <<"<erlang.Ref ", _/binary>>} = py:eval("repr(r)", #{r => Ref}),
    ?assertEqual(
        {ok, self()}, py:eval("__import__('pickle').loads(__import__('pickle').dumps(p))", #{p => self()})
    ),
    %% What Python makes up is no pid, and no way to a term of another kind.
    [
        {error, {<<"ValueError">>, _, _}} =
            py:eval("__import__('erlang').Pid(b)", #{b => {bytes, Bytes}})
     || Bytes <- [<<>>, <<"x">>, term_to_binary(Ref), term_to_binary(a), <<131, 88>>, <<131, 80, 1>>]
    ].

python_subclasses_convert_as_their_base(_Config) ->
    ok = py:exec(
        "import collections, enum\n"
        "class Color(enum.IntEnum):\n    RED = 3\n"
        "class Text(str):\n    def __str__(self): return 'other'\n"
        "class Liar(set):\n    def __iter__(self): raise ValueError('no')\n"
        "class Real(float):\n    def __float__(self): return 0.0\n"
        "Point = collections.namedtuple('Point', 'x y')\n"
        "class Items(dict):\n    def items(self): raise ValueError('no')\n"
    ),
    Cases = [
        {"Color.RED", 3},
        {"Text('t')", <<"t">>},
        {"Real(1.5)", 1.5},
        {"Point(1, 2)", {1, 2}},
        {"collections.OrderedDict(a=1)", #{<<"a">> => 1}},
        {"collections.defaultdict(int, a=1)", #{<<"a">> => 1}},
        {"Items(a=1)", #{<<"a">> => 1}},
        {"Liar([1])", [1]},
        {"{1}", [1]},
        {"frozenset([1])", [1]},
        {"bytearray(b'b')", <<"b">>},
        {"memoryview(b'abcd')[::2]", <<"ac">>}
    ],
    [?assertEqual({Code, {ok, Term}}, {Code, py:eval(Code)}) || {Code, Term} <- Cases].

python_makes_no_atoms(_Config) ->
    Name = "never_an_atom_" ++ integer_to_list(erlang:unique_integer([positive])),
    {error, {<<"ValueError">>, _, _}} =
        py:eval("__import__('erlang').Atom(n)", #{n => list_to_binary(Name)}),
    {error, {<<"ValueError">>, _, _}} =
        py:eval("__import__('erlang').Atom(n)", #{n => <<(list_to_binary(Name))/binary, "日"/utf8>>}),
    ?assertError(badarg, list_to_existing_atom(Name)),
    ok = py:exec(
        "import erlang\n"
        "def forged(name):\n"
        "    atom = erlang.Atom('ok')\n"
        "    atom._name = name\n"
        "    return atom\n"
    ),
    {error, {<<"ValueError">>, _, _}} = py:call('__main__', forged, [list_to_binary(Name)]),
    ?assertError(badarg, list_to_existing_atom(Name)).

what_python_cannot_have_is_refused(_Config) ->
    Port = hd(erlang:ports()),
    [
        begin
            {error, {Class, Message, <<>>}} = same(Term),
            ?assertMatch({_, {_, _}}, {Message, binary:match(Message, Word)})
        end
     || {Term, Class, Word} <- [
            {fun() -> ok end, <<"TypeError">>, <<"a fun">>},
            {Port, <<"TypeError">>, <<"a port">>},
            {<<1:3>>, <<"TypeError">>, <<"bitstring">>},
            {<<"ok", 255>>, <<"ValueError">>, <<"UTF-8 at byte 2">>},
            {[1 | 2], <<"ValueError">>, <<"improper">>}
        ]
    ],
    [
        begin
            {error, {Class, Message, _}} = same(Term),
            ?assertMatch({_, {_, _}}, {Message, binary:match(Message, Word)})
        end
     || {Term, Class, Word} <- [
            {#{[] => 1}, <<"TypeError">>, <<"list">>},
            {#{#{} => 1}, <<"TypeError">>, <<"dict">>},
            {#{{[]} => 1}, <<"TypeError">>, <<"tuple">>},
            {#{a => 1, <<"a">> => 2}, <<"ValueError">>, <<"same key">>},
            {#{1 => 1, 1.0 => 2}, <<"ValueError">>, <<"same key">>},
            {#{1 => 1, true => 2}, <<"ValueError">>, <<"same key">>},
            {#{nil => 1, undefined => 2}, <<"ValueError">>, <<"same key">>}
        ]
    ].

what_erlang_cannot_have_is_refused(_Config) ->
    [
        begin
            {error, {Class, Message, <<>>}} = py:eval(Code),
            ?assertMatch({_, _, {_, _}}, {Code, Message, binary:match(Message, Word)})
        end
     || {Code, Class, Word} <- [
            {"float('nan')", <<"ValueError">>, <<"finite">>},
            {"float('-inf')", <<"ValueError">>, <<"finite">>},
            {"'\\ud800'", <<"ValueError">>, <<"surrogates">>},
            {"{'a': 1, b'a': 2}", <<"ValueError">>, <<"same key">>},
            {"[object()]", <<"TypeError">>, <<"object">>},
            {"(i for i in [])", <<"TypeError">>, <<"generator">>},
            {"range(3)", <<"TypeError">>, <<"range">>},
            {"{}.keys()", <<"TypeError">>, <<"dict_keys">>},
            {"1j", <<"TypeError">>, <<"complex">>},
            {"int", <<"TypeError">>, <<"type">>},
            {"__import__('decimal').Decimal(1)", <<"TypeError">>, <<"decimal.Decimal">>},
            {"(lambda v: (v.release(), v)[1])(memoryview(b'a'))", <<"TypeError">>, <<"memoryview">>}
        ]
    ].

errors_never_show_an_objects_str(_Config) ->
    ok = py:exec(
        "class Secret:\n"
        "    def __str__(self): raise SystemExit('str was called')\n"
        "    __repr__ = __str__\n"
        "    @property\n"
        "    def __class__(self): raise SystemExit('class was asked')\n"
    ),
    {error, {<<"TypeError">>, Message, <<>>}} = py:eval("[Secret()]"),
    ?assertMatch({_, _}, binary:match(Message, <<"Secret">>)).

depth_is_bounded_both_ways(_Config) ->
    Deep = fun(N) -> lists:foldl(fun(_, Term) -> [Term] end, [], lists:seq(2, N)) end,
    ?assertEqual({ok, Deep(510)}, same(Deep(510))),
    DeepMap = lists:foldl(fun(_, Term) -> #{a => {Term}} end, 1, lists:seq(1, 250)),
    {ok, _} = same(DeepMap),
    [{error, {<<"ValueError">>, <<"nested deeper", _/binary>>, <<>>}} = same(Deep(N)) || N <- [513, 100000]],
    ok = py:exec(
        "loop = []\nloop.append(loop)\n"
        "cycle = {}\ncycle['self'] = (cycle,)\n"
        "deep = []\n"
        "for i in range(100000): deep = [deep]\n"
    ),
    [
        {error, {<<"ValueError">>, <<"nested deeper", _/binary>>, <<>>}} = py:eval(Name)
     || Name <- ["loop", "cycle", "deep"]
    ],
    ok = py:exec("del loop, cycle, deep").

size_is_bounded_both_ways(_Config) ->
    {error, {<<"ValueError">>, <<"more than", _/binary>>, <<>>}} = same(lists:duplicate(5000000, a)),
    {error, {<<"ValueError">>, <<"more than", _/binary>>, <<>>}} = py:eval("[0] * 5_000_000"),
    ok = py:exec("shared = [0] * 1000\nfor i in range(2): shared = [shared] * 1000"),
    {error, {<<"ValueError">>, <<"more than", _/binary>>, <<>>}} = py:eval("shared"),
    ok = py:exec("del shared"),
    Big = binary:copy(<<"x">>, 10000000),
    ?assertEqual({ok, Big}, same(Big)).

%%--------------------------------------------------------------------------------------------------
%% Errors

exceptions_of_every_kind_are_answers(_Config) ->
    ok = py:exec(
        "class Unprintable(Exception):\n"
        "    def __str__(self): raise RuntimeError('no')\n"
        "    __repr__ = __str__\n"
        "class Exiting(Exception):\n"
        "    def __str__(self): raise SystemExit(3)\n"
        "    __repr__ = __str__\n"
        "class Meta(type):\n"
        "    def __getattribute__(cls, name): raise RuntimeError('meta')\n"
        "class Hostile(Exception, metaclass=Meta): pass\n"
        "class Odd(Exception): pass\n"
        "Odd.__module__ = 7\n"
        "def throw(error): raise error\n"
    ),
    [
        ?assertMatch({_, {error, {Class, _, _}}}, {Code, py:exec(Code)})
     || {Code, Class} <- [
            {"1/0", <<"ZeroDivisionError">>},
            {"1 +", <<"SyntaxError">>},
            {"  x = 1\n y = 2", <<"IndentationError">>},
            {"raise SystemExit", <<"SystemExit">>},
            {"import sys; sys.exit(3)", <<"SystemExit">>},
            {"raise KeyboardInterrupt", <<"KeyboardInterrupt">>},
            {"raise GeneratorExit", <<"GeneratorExit">>},
            {"raise MemoryError", <<"MemoryError">>},
            {"'x' * (1 << 62)", <<"MemoryError">>},
            {"def f(): f()\nf()", <<"RecursionError">>},
            {"raise Unprintable", <<"__main__.Unprintable">>},
            {"raise Exiting", <<"__main__.Exiting">>},
            {"raise Hostile", <<"?">>},
            {"raise Odd", <<"Odd">>},
            {"raise Exception('\\ud800')", <<"Exception">>},
            {"raise ExceptionGroup('g', [ValueError(1)])", <<"ExceptionGroup">>},
            {"raise 7", <<"TypeError">>},
            {"import no_such_module", <<"ModuleNotFoundError">>},
            {"raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'why')", <<"UnicodeDecodeError">>}
        ]
    ],
    {ok, 1} = py:eval("1").

tracebacks_name_the_users_lines(_Config) ->
    {error, {<<"ValueError">>, <<"bad">>, Traceback}} =
        py:exec("def f():\n    raise ValueError('bad')\n\nf()"),
    ?assertMatch({_, _}, binary:match(Traceback, <<"\"<py:exec>\", line 2, in f">>)),
    ?assertMatch({_, _}, binary:match(Traceback, <<"ValueError: bad">>)),
    ?assertEqual(nomatch, binary:match(Traceback, <<"_calls.py">>)).

deep_recursion_is_an_error_on_every_thread(_Config) ->
    ok = py:exec(
        "import json, threading\n"
        "def dive(n=0): return dive(n + 1)\n"
        "class Deep:\n"
        "    def __eq__(self, other): return [Deep()] == [Deep()]\n"
        "def dive_in_c(): return Deep() == Deep()\n"
        "def in_thread(function):\n"
        "    errors = []\n"
        "    def run():\n"
        "        try: function()\n"
        "        except RecursionError as error: errors.append(type(error).__name__)\n"
        "    thread = threading.Thread(target=run); thread.start(); thread.join()\n"
        "    return errors\n"
        "barrier = threading.Barrier(4)\n"
        "def dive_together(function):\n"
        "    barrier.wait()\n"
        "    globals()[function]()\n"
    ),
    Dives = [
        spawn_call(fun() -> py:call('__main__', dive_together, [Function]) end)
     || Function <- [dive, dive_in_c, dive, dive_in_c]
    ],
    [?assertMatch({error, {<<"RecursionError">>, _, _}}, result(Dive)) || Dive <- Dives],
    {ok, [<<"RecursionError">>]} = py:eval("in_thread(dive)"),
    {ok, [<<"RecursionError">>]} = py:eval("in_thread(dive_in_c)").

%%--------------------------------------------------------------------------------------------------
%% Interrupts

timeout_interrupts_a_busy_loop(_Config) ->
    %% A loop that comes first in its `try' would be interrupted outside of it: CPython counts the
    %% exception to the instruction before the one that the loop jumps to.
    ok = py:exec(
        "import erlang\n"
        "def spin(pid):\n"
        "    try:\n"
        "        started = True\n"
        "        while True: pass\n"
        "    except erlang.Interrupted as error:\n"
        "        erlang.send(pid, ('interrupted', isinstance(error, KeyboardInterrupt)))\n"
        "        raise\n"
    ),
    {error, timeout} = py:call('__main__', spin, [self()], #{}, 50),
    receive
        {<<"interrupted">>, true} -> ok
    end,
    {error, timeout} = py:eval("[0 for _ in iter(int, 1)]", #{}, 50),
    {ok, 1} = py:eval("1").

interrupt_never_hits_the_next_call(_Config) ->
    %% Calls that end at about the time of their timeout, then one that would notice a stray one.
    ok = py:exec(
        "import time\n"
        "def work(seconds):\n"
        "    end = time.perf_counter() + seconds\n"
        "    while time.perf_counter() < end: pass\n"
        "    return 'done'\n"
    ),
    [
        begin
            case py:call('__main__', work, [0.002 + I * 0.000004], #{}, 3) of
                {ok, <<"done">>} -> ok;
                {error, timeout} -> ok
            end,
            ?assertEqual({ok, 1000}, py:eval("sum(1 for _ in range(1000))"))
        end
     || I <- lists:seq(1, 500)
    ].

endless_str_of_an_exception_is_interrupted(_Config) ->
    ok = py:exec(
        "import erlang\n"
        "class Endless(Exception):\n"
        "    def __init__(self, pid): self.pid = pid\n"
        "    def __str__(self):\n"
        "        try:\n"
        "            erlang.send(self.pid, 'in str')\n"
        "            while True: pass\n"
        "        finally: erlang.send(self.pid, 'out')\n"
        "    __repr__ = __str__\n"
        "def fail(pid): raise Endless(pid)\n"
    ),
    {error, timeout} = py:call('__main__', fail, [self()], #{}, 100),
    receive
        <<"in str">> -> ok
    end,
    receive
        <<"out">> -> ok
    end,
    {ok, 1} = py:eval("1"),
    flush().

sleeping_code_is_interrupted_when_it_wakes(_Config) ->
    ok = py:exec("done = []"),
    {error, timeout} = py:eval("[__import__('time').sleep(0.3), done.append(1)]", #{}, 20),
    timer:sleep(500),
    {ok, []} = py:eval("done").

death_of_the_caller_interrupts_its_call(_Config) ->
    ok = py:exec(
        "import erlang\n"
        "def hold(pid):\n"
        "    try:\n"
        "        erlang.send(pid, 'runs')\n"
        "        while True: pass\n"
        "    finally:\n"
        "        erlang.send(pid, 'ended')\n"
    ),
    Self = self(),
    Caller = spawn(fun() -> py:call('__main__', hold, [Self]) end),
    receive
        <<"runs">> -> exit(Caller, kill)
    end,
    receive
        <<"ended">> -> ok
    end.

dead_callers_queued_calls_never_run(_Config) ->
    Release = hold_all_threads(),
    Self = self(),
    Caller = spawn(fun() -> py:call(erlang, send, [Self, <<"ran">>]) end),
    wait_until(fun() -> process_info(Caller, status) =:= {status, waiting} end, not_waiting),
    exit(Caller, kill),
    Release(),
    {ok, 1} = py:eval("1"),
    receive
        <<"ran">> -> ct:fail(ran)
    after 50 -> ok
    end.

timed_out_queued_call_never_runs(_Config) ->
    Release = hold_all_threads(),
    {error, timeout} = py:call(erlang, send, [self(), <<"ran">>], #{}, 10),
    {error, timeout} = py:call(erlang, send, [self(), <<"ran">>], #{}, 0),
    Release(),
    {ok, 1} = py:eval("1"),
    receive
        <<"ran">> -> ct:fail(ran)
    after 50 -> ok
    end.

full_queue_answers_overload(_Config) ->
    Release = hold_all_threads(),
    Answers = [py:cast(builtins, len, [[]]) || _ <- lists:seq(1, 1100)],
    ?assertEqual(1024, length([ok || ok <- Answers])),
    ?assertEqual({error, overload}, lists:last(Answers)),
    ?assertEqual({error, overload}, py:eval("1")),
    Release(),
    wait_until(fun() -> py:eval("1") =:= {ok, 1} end, still_overloaded).

race_of_answers_and_timeouts_leaves_nothing_behind(_Config) ->
    Calls = [
        spawn_call(fun() ->
            [
                case py:eval("n", #{n => {N, M}}, rand:uniform(3) - 1) of
                    {ok, {N, M}} -> ok;
                    {error, timeout} -> ok;
                    {error, overload} -> ok
                end
             || M <- lists:seq(1, 300)
            ],
            process_info(self(), messages)
        end)
     || N <- lists:seq(1, 20)
    ],
    [?assertEqual({messages, []}, result(Call)) || Call <- Calls],
    {ok, 1} = py:eval("1").

%%--------------------------------------------------------------------------------------------------
%% Libraries

standard_libraries_with_native_parts_work(_Config) ->
    ok = py:exec(
        "import ssl, ctypes, sqlite3, hashlib, zlib, lzma, bz2, decimal, json, socket, select\n"
        "import concurrent.futures\n"
        "ssl.create_default_context()\n"
        "assert ctypes.CDLL(None).getpid() == __import__('os').getpid()\n"
        "assert sqlite3.connect(':memory:').execute('select 6 * 7').fetchone() == (42,)\n"
        "assert zlib.decompress(zlib.compress(b'x')) == b'x'\n"
        "with concurrent.futures.ThreadPoolExecutor(2) as pool:\n"
        "    assert list(pool.map(len, ['a', 'bb'])) == [1, 2]\n"
    ).

subprocess_exit_codes_are_right(_Config) ->
    ok = py:exec(
        "import os, subprocess\n"
        "assert subprocess.run(['false']).returncode == 1\n"
        "assert subprocess.run(['sh', '-c', 'exit 7']).returncode == 7\n"
        "assert subprocess.run(['sh', '-c', 'kill -9 $$']).returncode == -9\n"
        "assert subprocess.check_output(['echo', 'hi']) == b'hi\\n'\n"
        "assert os.system('exit 3') >> 8 == 3\n"
    ),
    %% And Erlang's own are as they were.
    ?assertEqual("hi\n", os:cmd("echo hi")),
    Port = open_port({spawn, "sh -c 'exit 5'"}, [exit_status]),
    receive
        {Port, {exit_status, Status}} -> ?assertEqual(5, Status)
    end.

asyncio_runs_on_a_call_thread(_Config) ->
    ok = py:exec(
        "import asyncio\n"
        "async def main():\n"
        "    process = await asyncio.create_subprocess_exec('sh', '-c', 'exit 4')\n"
        "    await asyncio.sleep(0.01)\n"
        "    return await process.wait() + sum(await asyncio.gather(*[asyncio.sleep(0.01, i) for i in range(4)]))\n"
        "assert asyncio.run(main()) == 10\n"
    ).

multiprocessing_works(Config) ->
    Folder = ?config(priv_dir, Config),
    ok = file:write_file(filename:join(Folder, "squares.py"), "def square(n): return n * n\n"),
    ok = py:add_path(Folder),
    [
        ok = py:exec(io_lib:format(
            "import multiprocessing, squares\n"
            "with multiprocessing.get_context('~s').Pool(2) as pool:\n"
            "    assert pool.map(squares.square, [1, 2, 3]) == [1, 4, 9]\n"
            "    pool.close(); pool.join()\n",
            [Method]
        ))
     || Method <- ["spawn", "fork"]
    ],
    %% Its helper process lives on by design; end it so that the count of descriptors is as before.
    ok = py:exec(
        "import gc\n"
        "from multiprocessing import resource_tracker\n"
        "del pool\n"
        "gc.collect()\n"
        "resource_tracker._resource_tracker._stop()\n"
    ).

forked_child_never_comes_back(_Config) ->
    ok = py:exec(
        "import os, sys\n"
        "def fork(code):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        exec(code)\n"
        "        return 'the child'\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
    ),
    {ok, 0} = py:call('__main__', fork, [<<"pass">>]),
    {ok, 7} = py:call('__main__', fork, [<<"sys.exit(7)">>]),
    {ok, 1} = py:call('__main__', fork, [<<"import logging; logging.error('x'); 1/0">>]),
    {ok, 0} = py:call('__main__', fork, [<<"
import erlang
try: erlang.send('init', 1)
except OSError: pass
else: sys.exit(9)
">>]),
    {ok, 1} = py:eval("1").

signal_handlers_cannot_be_taken(_Config) ->
    {error, {<<"ValueError">>, _, _}} =
        py:exec("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)").

standard_input_is_not_the_shells(_Config) ->
    {error, {<<"EOFError">>, _, _}} = py:eval("input()"),
    %% This closes sys.stdin, which must not be the node's.
    {error, {<<"SystemExit">>, _, _}} = py:exec("exit()"),
    ?assertMatch({ok, _}, file:read_link("/proc/self/fd/0")).

%%--------------------------------------------------------------------------------------------------
%% Processes

send_reaches_pids_and_names(_Config) ->
    register(py_suite_receiver, self()),
    [
        begin
            ok = py:exec(["import erlang\n" | [Code, $\n]]),
            receive
                {<<"got">>, Message} -> Message
            end
        end
     || Code <- [
            "erlang.send('py_suite_receiver', ('got', 1))",
            "erlang.send(erlang.Atom('py_suite_receiver'), ('got', [erlang.Atom('ok')]))",
            "erlang.send(erlang.whereis('py_suite_receiver'), ('got', {'a': None}))",
            "import threading; threading.Thread(target=erlang.send, args=('py_suite_receiver', ('got', 2))).start()"
        ]
    ],
    unregister(py_suite_receiver),
    {ok, none} = py:call(erlang, send, [self(), {bytes, <<1, 2>>}]),
    receive
        <<1, 2>> -> ok
    end.

send_to_nobody_is_an_error_only_for_names(_Config) ->
    {error, {<<"LookupError">>, _, _}} = py:call(erlang, send, [nobody_has_this_name, 1]),
    {error, {<<"LookupError">>, _, _}} = py:call(erlang, send, [<<"nobody", 0, "x">>, 1]),
    {error, {<<"TypeError">>, _, _}} = py:call(erlang, send, [7, 1]),
    {error, {<<"TypeError">>, _, _}} = py:eval("__import__('erlang').send('init', object())"),
    Dead = spawn(fun() -> ok end),
    wait_until(fun() -> not is_process_alive(Dead) end, alive),
    {ok, none} = py:call(erlang, send, [Dead, 1]).

send_reaches_another_node(_Config) ->
    os:cmd("epmd -daemon"),
    {ok, _} = net_kernel:start([py_suite, shortnames]),
    {ok, Peer, Node} = peer:start(#{name => peer:random_name(), args => ["-setcookie", atom_to_list(erlang:get_cookie()), "-pa", filename:dirname(code:which(?MODULE))]}),
    Self = self(),
    Remote = erpc:call(Node, fun() ->
        spawn(fun() ->
            receive
                Message -> Self ! {over_there, Message}
            end
        end)
    end),
    ?assertEqual({ok, Remote}, same(Remote)),
    {ok, none} = py:call(erlang, send, [Remote, #{a => Remote}]),
    receive
        {over_there, Message} -> ?assertEqual(#{<<"a">> => Remote}, Message)
    end,
    peer:stop(Peer),
    ok = net_kernel:stop().

whereis_finds_names(_Config) ->
    Init = whereis(init),
    ?assertEqual({ok, Init}, py:call(erlang, whereis, [init])),
    ?assertEqual({ok, none}, py:call(erlang, whereis, [<<"no such name at all">>])),
    {error, {<<"TypeError">>, _, _}} = py:call(erlang, whereis, [1]).

%%--------------------------------------------------------------------------------------------------
%% Log

log_records_reach_the_logger_with_level_and_traceback(_Config) ->
    with_log(fun() ->
        [
            begin
                ok = py:exec(["import logging\nlogging.getLogger('a.b').", Method, "('text %d', 7)"]),
                ?assertMatch(
                    #{level := Level, msg := {report, #{python := <<"text 7">>, logger := <<"a.b">>}}},
                    next_log()
                )
            end
         || {Method, Level} <- [
                {"info", info}, {"warning", warning}, {"error", error}, {"critical", critical}
            ]
        ],
        ok = py:exec("logging.debug('not at this level')"),
        ok = py:exec("try: 1/0\nexcept Exception: logging.exception('caught')"),
        #{msg := {report, #{python := <<"caught">>, traceback := Traceback} = Report}} = next_log(),
        ?assertMatch({_, _}, binary:match(Traceback, <<"ZeroDivisionError">>)),
        {Format, Args} = py_reactor_log:format(Report),
        ?assertMatch("caught\nTraceback" ++ _, lists:flatten(io_lib:format(Format, Args))),
        ok = py:exec("import warnings\nwarnings.warn('old')"),
        ?assertMatch(#{level := warning}, next_log()),
        ok = py:exec("logging.error('\\ud800')"),
        ?assertMatch(#{level := error}, next_log())
    end).

uncaught_exceptions_are_logged(_Config) ->
    with_log(fun() ->
        ok = py:exec("import threading\nthreading.Thread(target=lambda: 1/0).start()"),
        #{level := error, msg := {report, #{traceback := First}}} = next_log(),
        ?assertMatch({_, _}, binary:match(First, <<"ZeroDivisionError">>)),
        ok = py:exec("class Bad:\n    def __del__(self): raise ValueError('in del')\nBad()"),
        #{level := error, msg := {report, #{traceback := Second}}} = next_log(),
        ?assertMatch({_, _}, binary:match(Second, <<"in del">>))
    end).

flood_of_log_lines_is_bounded_and_counted(_Config) ->
    with_log(fun() ->
        ok = sys:suspend(py_reactor_log),
        ok = py:exec("import logging\nfor i in range(5000): logging.warning('line %d', i)"),
        {message_queue_len, Waiting} = process_info(whereis(py_reactor_log), message_queue_len),
        ?assertEqual(1000, Waiting),
        ok = sys:resume(py_reactor_log),
        Lines = [next_log() || _ <- lists:seq(1, 1001)],
        [Dropped] = [N || #{msg := {report, #{what := python_log_lines_dropped, lines := N}}} <- Lines],
        ?assertEqual(4000, Dropped),
        ok = py:exec("logging.warning('after')"),
        ?assertMatch(#{msg := {report, #{python := <<"after">>}}}, next_log())
    end).

log_receiver_survives_bad_messages(_Config) ->
    with_log(fun() ->
        Receiver = whereis(py_reactor_log),
        Receiver ! nonsense,
        ?assertMatch(#{msg := {report, #{what := unexpected_message}}}, next_log()),
        {error, unknown_call} = gen_server:call(Receiver, nonsense),
        ?assertMatch(#{msg := {report, #{what := unexpected_call}}}, next_log()),
        ?assertEqual(Receiver, whereis(py_reactor_log))
    end).

%%--------------------------------------------------------------------------------------------------
%% Life

application_restarts_ten_times(_Config) ->
    ok = py:exec("survivor = 'here'"),
    [
        begin
            ok = application:stop(py_reactor),
            {error, not_running} = py:eval("1"),
            ok = application:start(py_reactor),
            ?assertEqual({ok, <<"here">>}, py:eval("survivor"))
        end
     || _ <- lists:seq(1, 10)
    ].

stop_answers_what_waits_and_interrupts_what_runs(_Config) ->
    ok = py:exec(
        "import erlang\n"
        "def spin(pid):\n"
        "    erlang.send(pid, 'spins')\n"
        "    while True: pass\n"
    ),
    Self = self(),
    Running = [spawn_call(fun() -> py:call('__main__', spin, [Self]) end) || _ <- lists:seq(1, 4)],
    [
        receive
            <<"spins">> -> ok
        end
     || _ <- Running
    ],
    {Pid, _} = Waiting = spawn_call(fun() -> py:eval("1") end),
    wait_until(fun() -> process_info(Pid, status) =:= {status, waiting} end, not_waiting),
    ok = application:stop(py_reactor),
    [?assertMatch({error, {<<"erlang.Interrupted">>, _, _}}, result(Call)) || Call <- Running],
    ?assertEqual({error, stopped}, result(Waiting)).

bad_settings_are_named(_Config) ->
    ok = application:stop(py_reactor),
    [
        begin
            ok = application:set_env(py_reactor, Key, Value),
            {error, {{bad_setting, Key, Text}, _}} = application:start(py_reactor),
            ?assert(is_list(Text)),
            ok = application:unset_env(py_reactor, Key)
        end
     || {Key, Value} <- [
            {python, 7},
            {python, ""},
            {python_path, "/tmp"},
            {python_path, ["/no/such/folder"]},
            {contexts, 0},
            {max_connections, many},
            {linger_ms, -1},
            {call_threads, 1000},
            {log_level, loud},
            {colour, red}
        ]
    ],
    ok = application:start(py_reactor).

python_of_another_version_is_refused(Config) ->
    Program = filename:join(?config(priv_dir, Config), "python_of_old"),
    ok = file:write_file(Program, "#!/bin/sh\necho /usr/bin/python2; echo cpython; echo 2.7; echo 2.7.18\n"),
    ok = file:change_mode(Program, 8#755),
    {1, Output} = node("", start_and_print(), [{"PY_REACTOR_PYTHON", Program}]),
    [
        ?assertMatch({_, {match, _}}, {Output, re:run(Output, Word)})
     || Word <- ["2\\.7", "built against", "3\\.1[0-9]"]
    ].

python_that_cannot_run_is_refused(_Config) ->
    {1, Output} = node("", start_and_print(), [{"PY_REACTOR_PYTHON", "/no/such/python"}]),
    ?assertMatch({_, {match, _}}, {Output, re:run(Output, "cannot run the python program")}).

virtual_environment_is_used(Config) ->
    Folder = filename:join(?config(priv_dir, Config), "venv"),
    ok = py:exec(io_lib:format(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'venv', '--without-pip', '~ts'], check=True)\n", [Folder]
    )),
    Code = "{ok, _} = application:ensure_all_started(py_reactor), {ok, P} = py:eval(\"__import__('sys').prefix\"), io:put_chars(P), halt(0).",
    [
        ?assertEqual({0, Folder}, node("", Code, Env))
     || Env <- [
            [{"PY_REACTOR_PYTHON", Folder ++ "/bin/python"}],
            [{"PY_REACTOR_PYTHON", Folder}],
            [{"PY_REACTOR_PYTHON", ""}, {"VIRTUAL_ENV", Folder}]
        ]
    ],
    Setting = "-py_reactor python '\"" ++ Folder ++ "\"'",
    ?assertEqual({0, Folder}, node(Setting, Code, [])).

%% A wheel of another version, which a `.pth' file imports while Python starts.
our_package_wins_over_an_installed_wheel(Config) ->
    Folder = filename:join(?config(priv_dir, Config), "wheel"),
    ok = py:exec(io_lib:format(
        "import pathlib, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'venv', '--without-pip', '~ts'], check=True)\n"
        "packages, = pathlib.Path('~ts').glob('lib/python3*/site-packages')\n"
        "(packages / 'py_reactor-9.9.9.dist-info').mkdir()\n"
        "for name in ('erlang', '_erlang', 'erlang/reactor'):\n"
        "    (packages / name).mkdir()\n"
        "    (packages / name / '__init__.py').write_text('import _erlang\\nwheel = True\\n')\n"
        "(packages / 'eager.pth').write_text('import erlang.reactor\\n')\n",
        [Folder, Folder]
    )),
    Code =
        "{ok, _} = application:ensure_all_started(py_reactor),"
        "{ok, Names} = py:eval(\"[hasattr(__import__(m), 'wheel') for m in ('erlang', '_erlang', 'erlang.reactor')]\"),"
        "{error, {<<\"RuntimeError\">>, Text, _}} = py:exec(\"from erlang.reactor.server import *; Server(type('P', (__import__('erlang.reactor').reactor.Protocol,), {}))\"),"
        "io:format(\"~p ~ts\", [Names, Text]), halt(0).",
    {0, Output} = node("", Code, [{"PY_REACTOR_PYTHON", Folder}]),
    ?assertMatch({match, _}, re:run(Output, "\\[false,false,false\\] inside the Erlang VM")),
    {match, [[Installed, Own]]} = re:run(
        Output, "py_reactor (\\S+) is installed in \\S+, but this is py_reactor (\\S+)",
        [global, {capture, all_but_first, list}]
    ),
    {ok, Version} = application:get_key(py_reactor, vsn),
    ?assertEqual({"9.9.9", Version}, {Installed, Own}).

library_survives_load_file(_Config) ->
    ok = py:exec("kept = 'through load_file'"),
    [
        begin
            _ = code:load_file(py_nif),
            ?assertEqual({ok, <<"through load_file">>}, py:eval("kept"))
        end
     || _ <- lists:seq(1, 3)
    ].

library_survives_delete_and_purge(_Config) ->
    ok = py:exec("kept = 'through purge'"),
    Threads = library_threads(),
    [
        begin
            true = code:delete(py_nif),
            _ = code:purge(py_nif),
            _ = code:load_file(py_nif),
            ?assertEqual({ok, <<"through purge">>}, py:eval("kept")),
            with_log(fun() ->
                ok = py:exec("import logging; logging.warning('still logs')"),
                ?assertMatch(#{msg := {report, #{python := <<"still logs">>}}}, next_log())
            end)
        end
     || _ <- lists:seq(1, 3)
    ],
    ?assertEqual(Threads, library_threads()).

%% The threads that end with the node only.
library_threads() ->
    Names = [file:read_file(Comm) || Comm <- filelib:wildcard("/proc/self/task/*/comm")],
    lists:sort([Name || {ok, Name} <- Names, lists:member(Name, [<<"python main\n">>, <<"py sentry\n">>])]).

%%--------------------------------------------------------------------------------------------------
%% Ends

halt_with_busy_threads_keeps_its_status(_Config) ->
    [
        ?assertMatch({Status, _}, node("", [busy(), "halt(", integer_to_list(Status), ")."], []))
     || Status <- [0, 3, 0, 7]
    ].

init_stop_with_busy_threads_keeps_its_status(_Config) ->
    [
        ?assertMatch({Status, _}, node("", [busy(), "init:stop(", integer_to_list(Status), ")."], []))
     || Status <- [0, 5]
    ].

%% Both unload the library, while a thread of Python goes on to use it.
init_stop_while_python_calls_erlang_keeps_its_status(_Config) ->
    [
        ?assertMatch({Status, _}, node("", [calling(), "init:stop(", integer_to_list(Status), ")."], []))
     || Status <- [0, 5, 0, 7]
    ].

the_library_can_be_purged_while_python_calls_erlang(_Config) ->
    Purge = "[begin true = code:delete(py_nif), code:purge(py_nif), ok = py_nif:keep_types() end || _ <- lists:seq(1, 3)], ",
    Load = "{ok, 2} = py:eval(\"1 + 1\"), init:stop(3).",
    [?assertMatch({3, _}, node("", [calling(), Purge, Load], [])) || _ <- [1, 2]].

interrupt_signal_with_busy_threads_ends_cleanly(_Config) ->
    %% With +Bd one interrupt ends the node; with the break menu it takes a second one, or an `a'.
    Code = [busy(), "io:format(\"~s~n\", [os:getpid()]), timer:sleep(20000), halt(99)."],
    [
        begin
            Port = open_node(Flags, Code, []),
            OsPid = first_line(Port, []),
            [interrupt(Port, OsPid, Step) || Step <- Steps],
            ?assertMatch({_, Status, {Status, _}}, {Flags, Status, collect(Port, [])})
        end
     || {Flags, Steps, Status} <- [
            {"+Bd", [signal], 130},
            {"", [signal, signal], 0},
            {"", [signal, abort], 0}
        ]
    ].

interrupt(_Port, OsPid, signal) ->
    "" = os:cmd("kill -INT " ++ OsPid),
    timer:sleep(200);
interrupt(Port, _OsPid, abort) ->
    true = port_command(Port, "a\n").

first_line(Port, Output) ->
    case string:split(lists:append(Output), "\n") of
        [Line, _] ->
            Line;
        [_] ->
            receive
                {Port, {data, Data}} -> first_line(Port, Output ++ [Data])
            after 10000 -> ct:fail(no_line)
            end
    end.

%%--------------------------------------------------------------------------------------------------
%% Helpers

%% A term, through Python and back.
same(Term) ->
    py:eval("x", #{x => Term}).

spawn_call(Function) ->
    spawn_monitor(fun() -> exit({result, Function()}) end).

result({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> ct:fail(Reason)
    end.

%% Occupies every call thread until the returned function is called. The gate is a pipe, so that it
%% can be opened from here while no call gets through.
hold_all_threads() ->
    Gate = "py_suite_gate_" ++ os:getpid(),
    "" = os:cmd("mkfifo " ++ Gate),
    ok = py:exec(
        "import erlang, os\n"
        "def hold(pid, gate):\n"
        "    erlang.send(pid, 'held')\n"
        "    reader = os.open(gate, os.O_RDONLY)\n"
        "    os.read(reader, 1)\n"
        "    os.close(reader)\n"
        "    erlang.send(pid, 'let go')\n"
    ),
    Threads = lists:seq(1, 4),
    [ok = py:cast('__main__', hold, [self(), list_to_binary(filename:absname(Gate))]) || _ <- Threads],
    [
        receive
            <<"held">> -> ok
        end
     || _ <- Threads
    ],
    fun() ->
        {ok, Writer} = file:open(Gate, [write, raw]),
        ok = file:write(Writer, [$. || _ <- Threads]),
        [
            receive
                <<"let go">> -> ok
            end
         || _ <- Threads
        ],
        ok = file:close(Writer),
        ok = file:delete(Gate)
    end.

%% Filters every log event into this process while the function runs.
with_log(Function) ->
    Self = self(),
    Relay = fun(Event, _) -> Self ! {log_event, Event}, Event end,
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, info),
    ok = logger:add_primary_filter(py_suite, {Relay, []}),
    try
        Function()
    after
        ok = logger:remove_primary_filter(py_suite),
        ok = logger:set_primary_config(level, Level),
        flush_log()
    end.

next_log() ->
    receive
        {log_event, #{msg := {report, #{python := _}}} = Event} -> Event;
        {log_event, #{msg := {report, #{what := _}}} = Event} -> Event
    after 5000 -> ct:fail(no_log_event)
    end.

flush_log() ->
    receive
        {log_event, _} -> flush_log()
    after 0 -> ok
    end.

flush() ->
    receive
        _ -> flush()
    after 100 -> ok
    end.

start_and_print() ->
    "case application:ensure_all_started(py_reactor) of {ok, _} -> halt(0); {error, E} -> io:format(\"~tp\", [E]), halt(1) end.".

%% Python threads in pure Python, in C code with the GIL and in C code without it.
busy() ->
    "{ok, _} = application:ensure_all_started(py_reactor), "
    "ok = py:exec(\"import threading, hashlib, time, zlib, os, sys\\n"
    "data = os.urandom(1 << 20)\\n"
    "def spin():\\n    while True: pass\\n"
    "def digest():\\n    while True: hashlib.sha256(data).digest()\\n"
    "def shrink():\\n    while True: zlib.compress(data)\\n"
    "def order():\\n    while True: sorted(range(100000), reverse=True)\\n"
    "for target in (spin, digest, shrink, order):\\n"
    "    threading.Thread(target=target, daemon=True).start()\\n\"), "
    "spawn(fun() -> py:exec(\"while True: hashlib.sha256(data).digest()\") end), "
    "spawn(fun() -> py:exec(\"time.sleep(100)\") end), "
    "timer:sleep(100), ".

%% A Python thread that calls Erlang again and again, whatever becomes of it.
calling() ->
    "{ok, _} = application:ensure_all_started(py_reactor), "
    "ok = py:register_function(add, fun(A, B) -> A + B end), "
    "ok = py:exec(\"import erlang, threading\\n"
    "called = threading.Event()\\n"
    "def call():\\n"
    "    while True:\\n"
    "        try: erlang.call('add', 1, 2)\\n"
    "        except erlang.ErlangError: pass\\n"
    "        called.set()\\n"
    "threading.Thread(target=call, daemon=True).start()\\n\"), "
    "{ok, true} = py:eval(\"called.wait(10)\"), ".

%% Runs code in a node of its own: exit status and output.
node(Flags, Code, Env) ->
    collect(open_node(Flags, Code, Env), []).

open_node(Flags, Code, Env) ->
    Paths = [["-pa ", filename:dirname(code:which(Module)), " "] || Module <- [py_nif]],
    Command = lists:flatten(["erl -noshell ", Flags, " ", Paths, " -eval \"$CODE\""]),
    open_port({spawn, Command}, [
        exit_status, stderr_to_stdout, {env, [{"CODE", lists:flatten([Code])}, {"ERL_CRASH_DUMP_SECONDS", "0"} | Env]}
    ]).

collect(Port, Output) ->
    receive
        {Port, {data, Data}} -> collect(Port, [Output, Data]);
        {Port, {exit_status, Status}} -> {Status, lists:flatten(Output)}
    after 30000 -> ct:fail({node_hangs, lists:flatten(Output)})
    end.

no_more_than({Descriptors, Threads}, {DescriptorsNow, ThreadsNow}) ->
    DescriptorsNow =< Descriptors andalso ThreadsNow =< Threads.

resources() ->
    {length(descriptors()), length(tasks())}.

descriptors() ->
    Folder = "/proc/" ++ os:getpid() ++ "/fd",
    {ok, Names} = file:list_dir_all(Folder),
    Links = [{Name, file:read_link(filename:join(Folder, Name))} || Name <- Names],
    %% Common Test opens and closes log files as it likes.
    lists:sort([Link || {_, {ok, Link}} <- Links, string:find(Link, "/logs/") =:= nomatch]).

%% Without the courier, which the library makes for itself when it first needs it.
tasks() ->
    Folder = "/proc/" ++ os:getpid() ++ "/task",
    {ok, Tasks} = file:list_dir_all(Folder),
    Names = [file:read_file(filename:join([Folder, Task, "comm"])) || Task <- Tasks],
    [Name || {ok, Name} <- Names, string:trim(Name) =/= <<"py courier">>].

wait_until(Condition, Reason) ->
    wait_until(Condition, Reason, 200).

wait_until(_Condition, {leak, Before, Now}, 0) ->
    ct:fail({leak, Before, Now()});
wait_until(_Condition, Reason, 0) ->
    ct:fail(Reason);
wait_until(Condition, Reason, Tries) ->
    case Condition() of
        true ->
            ok;
        false ->
            timer:sleep(20),
            wait_until(Condition, Reason, Tries - 1)
    end.

%%% Erlang functions called from Python: names, values, exceptions, and every way in which a call can end.
-module(function_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [wait_until/2, wait_until/3]).

suite() ->
    [{timetrap, {seconds, 60}}].

all() ->
    [{group, names}, {group, calls}, {group, exceptions}, {group, endings}, {group, ends_of_the_server}].

groups() ->
    [
        {names, [], [
            atoms_binaries_and_strings_name_the_same_function,
            registering_again_replaces,
            unregistered_functions_are_unknown,
            names_that_python_cannot_import_are_refused,
            everything_that_the_package_has_is_reserved,
            bad_arguments_are_badarg,
            functions_outlive_who_registered_them
        ]},
        {calls, [], [
            calls_take_arguments_and_return_results,
            functions_are_imported_and_looked_up_by_name,
            unknown_functions_are_lookup_errors,
            module_and_function_have_every_arity,
            wrong_number_of_arguments_is_a_type_error,
            every_kind_of_value_crosses,
            large_values_cross,
            deep_values_cross,
            each_call_has_a_process_of_its_own,
            thousand_calls_from_many_threads_get_their_own_answers,
            callbacks_of_protocols_call,
            calls_nest_in_calls,
            nesting_beyond_the_threads_ends_in_a_timeout
        ]},
        {exceptions, [], [
            error_exit_and_throw_are_told_apart,
            reasons_that_cannot_cross_are_text,
            uncaught_exceptions_are_readable_in_erlang,
            python_exceptions_cross_an_erlang_function,
            arguments_that_cannot_cross_are_refused_at_the_call,
            results_that_cannot_cross_are_type_errors
        ]},
        {endings, [], [
            kill_of_the_process_is_an_exception,
            exit_of_a_linked_process_is_an_exception,
            timeout_kills_the_process,
            no_timeout_waits_for_ever,
            bad_timeouts_are_refused,
            answers_that_race_with_timeouts_are_never_confused,
            running_calls_outlive_their_registration,
            timeout_of_the_outer_call_interrupts_the_wait,
            death_of_the_outer_caller_interrupts_the_wait,
            interrupts_that_race_with_answers_leave_nothing_behind,
            interrupt_reaches_a_callback_that_waits,
            exception_in_another_thread_leaves_a_wait_alone,
            forked_child_has_no_functions,
            flood_of_abandoned_calls_is_bounded
        ]},
        {ends_of_the_server, [], [
            stop_of_the_application_ends_every_wait,
            stop_while_call_threads_wait_answers_their_callers,
            functions_end_with_the_application,
            calls_are_refused_while_the_application_is_stopped,
            death_of_the_server_ends_waits_and_keeps_names,
            restarts_under_load_lose_no_caller,
            functions_survive_a_reload_of_the_library,
            server_survives_strange_messages
        ]}
    ].

init_per_suite(Config) ->
    ok = reactor_case:start(#{}),
    Config.

end_per_suite(_Config) ->
    reactor_case:stop().

%% These stop or kill what the bystander of an ordinary case lives on.
init_per_group(ends_of_the_server, Config) -> [{bystander_dies, true} | Config];
init_per_group(_Group, Config) -> Config.

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    ok = reactor_case:start(#{}),
    ok = py:exec(helpers()),
    case ?config(bystander_dies, Config) of
        true -> [{counts, reactor_case:counts()} | Config];
        undefined -> reactor_case:begin_case(Config)
    end.

end_per_testcase(_Case, Config) ->
    [ok = py:unregister_function(Name) || Name <- py:functions()],
    {messages, []} = process_info(self(), messages),
    case ?config(bystander_dies, Config) of
        true ->
            {ok, _} = application:ensure_all_started(py_reactor),
            reactor_case:await_counts(?config(counts, Config));
        undefined ->
            reactor_case:end_case(Config)
    end.

%%--------------------------------------------------------------------------------------------------
%% Names

atoms_binaries_and_strings_name_the_same_function(_Config) ->
    ok = py:register_function(first, fun() -> 1 end),
    ok = py:register_function(<<"second">>, fun() -> 2 end),
    ok = py:register_function("third", fun() -> 3 end),
    ok = py:register_function(<<"żółw"/utf8>>, fun() -> 4 end),
    ok = py:register_function("_", fun() -> 5 end),
    ?assertEqual(
        lists:sort([<<"first">>, <<"second">>, <<"third">>, <<"żółw"/utf8>>, <<"_">>]), py:functions()
    ),
    ok = py:exec(<<"from erlang import first, second, third, żółw, _"/utf8>>),
    ?assertEqual({ok, [1, 2, 3, 4, 5]}, py:eval(<<"[f() for f in (first, second, third, żółw, _)]"/utf8>>)),
    [ok = py:unregister_function(Name) || Name <- ["first", second, <<"third">>]],
    ?assertEqual([<<"_">>, <<"żółw"/utf8>>], py:functions()).

registering_again_replaces(_Config) ->
    ok = py:register_function(f, fun() -> old end),
    ok = py:exec("from erlang import f"),
    ?assertEqual({ok, <<"old">>}, py:eval("f()")),
    ok = py:register_function(f, fun(X) -> {new, X} end),
    ?assertEqual({ok, {<<"new">>, 1}}, py:eval("f(1)")),
    ?assertEqual([<<"f">>], py:functions()).

unregistered_functions_are_unknown(_Config) ->
    ?assertEqual({error, unknown_function}, py:unregister_function(f)),
    ok = py:register_function(f, fun() -> 1 end),
    ok = py:exec("from erlang import f"),
    ok = py:unregister_function(f),
    ?assertEqual([], py:functions()),
    {error, {<<"LookupError">>, _, _}} = py:eval("f()"),
    {error, {<<"AttributeError">>, _, _}} = py:eval("erlang.f"),
    {ok, false} = py:eval("'f' in dir(erlang)").

names_that_python_cannot_import_are_refused(_Config) ->
    [
        begin
            {error, {bad_name, Text}} = py:register_function(Name, fun() -> 1 end),
            ?assertMatch({Name, {_, _}}, {Name, binary:match(Text, Word)})
        end
     || {Name, Word} <- [
            {"two words", <<"no identifier">>},
            {"1st", <<"no identifier">>},
            {"a-b", <<"no identifier">>},
            {"a.b", <<"no identifier">>},
            {"line\n", <<"no identifier">>},
            {<<"nul", 0>>, <<"no identifier">>},
            {<<>>, <<"no identifier">>},
            %% Python reads it as `fi'.
            {<<"ﬁ"/utf8>>, <<"no identifier">>},
            {class, <<"taken">>},
            {'None', <<"taken">>},
            {send, <<"taken">>},
            {reactor, <<"taken">>},
            {call, <<"taken">>},
            {'__wrapped__', <<"taken">>}
        ]
    ],
    ?assertEqual([], py:functions()).

everything_that_the_package_has_is_reserved(_Config) ->
    {ok, Names} = py:eval(
        "sorted({*vars(erlang), *(m.name for m in __import__('pkgutil').iter_modules(erlang.__path__)),"
        " *__import__('keyword').kwlist})"
    ),
    ?assert(lists:member(<<"whereis">>, Names)),
    Taken = [Name || Name <- Names, py:register_function(Name, fun() -> 1 end) =:= ok],
    ?assertEqual([], Taken).

bad_arguments_are_badarg(_Config) ->
    ?assertError(badarg, py:register_function(f, not_a_function)),
    ?assertError(badarg, py:register_function(f, {lists, "map"})),
    ?assertError(badarg, py:register_function(7, fun() -> 1 end)),
    ?assertError(badarg, py:register_function("", fun() -> 1 end)),
    ?assertError(badarg, py:register_function(<<255>>, fun() -> 1 end)),
    ?assertError(badarg, py:unregister_function(7)).

functions_outlive_who_registered_them(_Config) ->
    {Pid, Monitor} = spawn_monitor(fun() -> ok = py:register_function(f, fun() -> here end) end),
    receive
        {'DOWN', Monitor, process, Pid, normal} -> ok
    end,
    ?assertEqual({ok, <<"here">>}, py:eval("erlang.f()")).

%%--------------------------------------------------------------------------------------------------
%% Calls

calls_take_arguments_and_return_results(_Config) ->
    ok = py:register_function(add, fun(A, B) -> A + B end),
    ok = py:register_function(nothing, fun() -> undefined end),
    ?assertEqual({ok, 3}, py:eval("erlang.call('add', 1, 2)")),
    ?assertEqual({ok, 3}, py:eval("erlang.call('add', 1, 2, timeout=None)")),
    ?assertEqual({ok, 3}, py:eval("erlang.call('add', *[1, 2], timeout=10)")),
    ?assertEqual({ok, none}, py:eval("erlang.call('nothing')")),
    {error, {<<"TypeError">>, _, _}} = py:eval("erlang.call(7)"),
    {error, {<<"TypeError">>, _, _}} = py:eval("erlang.call()"),
    {error, {<<"TypeError">>, _, _}} = py:eval("erlang.call('add', a=1, b=2)").

functions_are_imported_and_looked_up_by_name(_Config) ->
    ok = py:register_function(add, fun(A, B) -> A + B end),
    ok = py:exec(
        "import pickle\n"
        "from erlang import add\n"
        "assert add(1, 2) == erlang.add(1, 2, timeout=1) == 3\n"
        "assert add.__name__ == 'add' and repr(add) == '<erlang function add>'\n"
        "assert isinstance(add, erlang.Function) and callable(add)\n"
        "assert add == erlang.add and hash(add) == hash(erlang.add) and add != 'add'\n"
        "assert pickle.loads(pickle.dumps(add)) == add\n"
        "assert 'add' in dir(erlang) and 'send' in dir(erlang)\n"
        "assert 'add' not in vars(erlang)\n"
        "from erlang import *\n"
        "import erlang.reactor\n"
    ).

unknown_functions_are_lookup_errors(_Config) ->
    {error, {<<"LookupError">>, Message, _}} = py:eval("erlang.call('nobody', 1)"),
    ?assertMatch({_, _}, binary:match(Message, <<"'nobody'">>)),
    {error, {<<"LookupError">>, _, _}} = py:eval("erlang.call('two words')"),
    {error, {<<"LookupError">>, _, _}} = py:eval("erlang.call('')"),
    {error, {<<"ImportError">>, _, _}} = py:exec("from erlang import nobody"),
    {error, {<<"AttributeError">>, _, _}} = py:eval("erlang.nobody"),
    {ok, false} = py:eval("hasattr(erlang, 'nobody')").

module_and_function_have_every_arity(_Config) ->
    ok = py:register_function(seq, {lists, seq}),
    ok = py:register_function(seq2, fun lists:seq/2),
    ok = py:register_function(abs_, {erlang, abs}),
    ok = py:register_function(nowhere, {no_such_module, f}),
    ?assertEqual({ok, [1, 2, 3]}, py:eval("erlang.seq(1, 3)")),
    ?assertEqual({ok, [1, 3]}, py:eval("erlang.seq(1, 3, 2)")),
    ?assertEqual({ok, [1, 2, 3]}, py:eval("erlang.seq2(1, 3)")),
    ?assertEqual({ok, 3}, py:eval("erlang.abs_(-3)")),
    {error, {<<"TypeError">>, _, _}} = py:eval("erlang.nowhere()"),
    %% An undefined function within a function is that function's error.
    ok = py:register_function(calls_nowhere, fun() -> (nowhere()):f() end),
    {error, {<<"erlang.ErlangError">>, <<"error: undef">>, _}} = py:eval("erlang.calls_nowhere()").

wrong_number_of_arguments_is_a_type_error(_Config) ->
    ok = py:register_function(one, fun(A) -> A end),
    ok = py:register_function(seq, {lists, seq}),
    [
        begin
            {error, {<<"TypeError">>, Message, _}} = py:eval(Code),
            ?assertMatch({_, {_, _}}, {Code, binary:match(Message, Count)})
        end
     || {Code, Count} <- [
            {"erlang.one()", <<"0 argument">>},
            {"erlang.one(1, 2)", <<"2 argument">>},
            {"erlang.seq()", <<"0 argument">>}
        ]
    ].

every_kind_of_value_crosses(_Config) ->
    Self = self(),
    ok = py:register_function(show, fun(Value) -> Self ! {shown, Value}, Value end),
    Big = 1 bsl 200,
    [
        begin
            ?assertEqual({Code, {ok, Back}}, {Code, py:eval(["erlang.show(", Code, ")"])}),
            receive
                {shown, Shown} -> ?assertEqual({Code, Term}, {Code, Shown})
            end
        end
     || {Code, Term, Back} <- [
            {"None", none, none},
            {"True", true, true},
            {"-7", -7, -7},
            {"1 << 200", Big, Big},
            {"1.5", 1.5, 1.5},
            {"'text'", <<"text">>, <<"text">>},
            {"b'bytes'", <<"bytes">>, <<"bytes">>},
            {"[1, [2], ()]", [1, [2], {}], [1, [2], {}]},
            {"(1, (2,), [])", {1, {2}, []}, {1, {2}, []}},
            {"{'a': {1: (2, 3)}, (4,): []}", #{<<"a">> => #{1 => {2, 3}}, {4} => []},
                #{<<"a">> => #{1 => {2, 3}}, {4} => []}},
            {"{}", #{}, #{}},
            {"erlang.Atom('ok')", ok, <<"ok">>},
            {"erlang.whereis('init')", whereis(init), whereis(init)}
        ]
    ].

large_values_cross(_Config) ->
    ok = py:register_function(same, fun(Value) -> Value end),
    ok = py:exec(
        "text = 'x' * 20_000_000\n"
        "assert erlang.same(text, timeout=None) == text\n"
        "numbers = list(range(500_000))\n"
        "assert erlang.same(numbers, timeout=None) == numbers\n"
        "table = {i: str(i) for i in range(100_000)}\n"
        "assert erlang.same(table, timeout=None) == table\n"
        "del text, numbers, table\n"
    ).

deep_values_cross(_Config) ->
    ok = py:register_function(same, fun(Value) -> Value end),
    ok = py:exec(
        "def nest(depth, wrap):\n"
        "    value = 0\n"
        "    for _ in range(depth): value = wrap(value)\n"
        "    return value\n"
        "for wrap in (lambda v: [v], lambda v: (v, v) if v == 0 else (v,), lambda v: {'k': v}):\n"
        "    deep = nest(500, wrap)\n"
        "    assert erlang.same(deep) == deep\n"
        "    try: erlang.same(nest(600, wrap))\n"
        "    except ValueError: pass\n"
        "    else: raise AssertionError('too deep')\n"
    ).

each_call_has_a_process_of_its_own(_Config) ->
    ok = py:register_function(own, fun() ->
        undefined = put(seen, true),
        self()
    end),
    {ok, [First, Second]} = py:eval("[erlang.own(), erlang.own()]"),
    ?assertNotEqual(First, Second),
    ?assertNot(lists:member(whereis(py_reactor_functions), [First, Second])),
    [wait_until("it has ended", fun() -> is_process_alive(Pid) end, false) || Pid <- [First, Second]].

thousand_calls_from_many_threads_get_their_own_answers(_Config) ->
    ok = py:register_function(same, fun(Value) -> Value end),
    ok = py:exec(
        "def calls(thread):\n"
        "    return [erlang.same((thread, n), timeout=None) for n in range(20)]\n"
        "with concurrent.futures.ThreadPoolExecutor(50) as pool:\n"
        "    answers = list(pool.map(calls, range(50)))\n"
        "assert answers == [[(t, n) for n in range(20)] for t in range(50)]\n"
    ),
    %% And all at the same time: none is answered before the last one has come.
    Gate = spawn_gate(100),
    ok = py:register_function(together, fun(N) -> through(Gate, N) end),
    ok = py:exec(
        "with concurrent.futures.ThreadPoolExecutor(100) as pool:\n"
        "    assert list(pool.map(lambda n: erlang.together(n, timeout=None), range(100))) == list(range(100))\n"
        "del pool\n"
    ).

callbacks_of_protocols_call(Config) ->
    ok = py:register_function(upper, fun(Text) -> {bytes, string:uppercase(Text)} end),
    ok = reactor_case:exec(
        "import erlang\n"
        "class Upper(reactor_case.Counted):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += erlang.upper(data)\n"
        "    def connection_lost(self):\n"
        "        super().connection_lost()\n"
        "        assert erlang.call('upper', 'x') == b'X'\n"
    ),
    ok = reactor_case:use("Upper"),
    Clients = [reactor_case:open(?config(listener, Config)) || _ <- lists:seq(1, 10)],
    [ok = gen_tcp:send(Client, "hello") || Client <- Clients],
    [?assertEqual({ok, <<"HELLO">>}, gen_tcp:recv(Client, 5, 20000)) || Client <- Clients],
    [ok = gen_tcp:close(Client) || Client <- Clients],
    reactor_case:await_ledger(10),
    ?assertEqual([], reactor_case:logged(#{level => error})).

%% Python, Erlang, Python, Erlang ...: each level of Python holds one of the four threads.
calls_nest_in_calls(_Config) ->
    ok = py:register_function(down, fun
        (0) ->
            bottom;
        (N) ->
            {ok, Value} = py:call('__main__', down, [N - 1]),
            {N, Value}
    end),
    ok = py:exec("def down(n): return erlang.down(n)"),
    ?assertEqual({ok, {3, {2, {1, <<"bottom">>}}}}, py:call('__main__', down, [3])),
    {ok, Nested} = py:eval(
        "list(concurrent.futures.ThreadPoolExecutor(10).map(lambda n: erlang.down(1), range(10)))"
    ),
    ?assertEqual([{1, <<"bottom">>} || _ <- lists:seq(1, 10)], Nested).

nesting_beyond_the_threads_ends_in_a_timeout(_Config) ->
    ok = py:register_function(deeper, fun(TimeoutS) -> py:call('__main__', deeper, [TimeoutS]) end),
    ok = py:exec("def deeper(timeout_s): return erlang.call('deeper', 100 * timeout_s, timeout=timeout_s)"),
    {error, {<<"TimeoutError">>, _, _}} = py:call('__main__', deeper, [0.2]),
    ?assertEqual({ok, 1}, py:eval("1")).

%%--------------------------------------------------------------------------------------------------
%% Exceptions

error_exit_and_throw_are_told_apart(_Config) ->
    ok = py:register_function(fail, fun
        (<<"error">>) -> error({no, #{fun_ => [1]}});
        (<<"exit">>) -> exit({bye, now});
        (<<"throw">>) -> throw(42);
        (<<"badmatch">>) -> {ok, _} = nowhere();
        (<<"normal">>) -> exit(normal)
    end),
    ok = py:exec(
        "def failure(*args):\n"
        "    try: erlang.fail(*args)\n"
        "    except erlang.ErlangError as e: return e.kind, e.reason, str(e), e.stacktrace\n"
        "assert issubclass(erlang.ErlangError, RuntimeError)\n"
    ),
    [
        begin
            {ok, {Kind1, Reason1, Text1, Stack}} = py:call('__main__', failure, [What]),
            ?assertEqual({Kind, Reason, Text}, {Kind1, Reason1, Text1}),
            ?assertMatch({_, _}, binary:match(Stack, <<"function_SUITE:">>)),
            ?assertEqual(nomatch, binary:match(Stack, <<"py_reactor_functions">>))
        end
     || {What, Kind, Reason, Text} <- [
            {error, <<"error">>, {<<"no">>, #{<<"fun_">> => [1]}}, <<"error: {no,#{fun_ => [1]}}">>},
            {exit, <<"exit">>, {<<"bye">>, <<"now">>}, <<"exit: {bye,now}">>},
            {throw, <<"throw">>, 42, <<"throw: 42">>},
            {badmatch, <<"error">>, {<<"badmatch">>, <<"nowhere">>}, <<"error: {badmatch,nowhere}">>},
            {normal, <<"exit">>, <<"normal">>, <<"exit: normal">>}
        ]
    ],
    ok = py:exec(
        "import pickle\n"
        "try: erlang.fail('throw')\n"
        "except erlang.ErlangError as e:\n"
        "    copy = pickle.loads(pickle.dumps(e))\n"
        "    assert (copy.kind, copy.reason, copy.stacktrace) == (e.kind, e.reason, e.stacktrace)\n"
        "    assert str(copy) == str(e) and copy.__notes__ == e.__notes__\n"
    ).

reasons_that_cannot_cross_are_text(_Config) ->
    [
        begin
            ok = py:register_function(fail, fun() -> error(Reason) end),
            ok = py:exec(
                "try: erlang.fail()\n"
                "except erlang.ErlangError as e: seen = type(e.reason).__name__, e.reason, str(e)\n"
            ),
            {ok, {<<"str">>, Text, Message}} = py:eval("seen"),
            ?assertEqual(Message, <<"error: ", Text/binary>>),
            ?assertMatch({_, {_, _}}, {Text, binary:match(Text, Word)}),
            ?assert(byte_size(Text) < 50_000)
        end
     || {Reason, Word} <- [
            {fun() -> 1 end, <<"#Fun<">>},
            {{bad, <<255, 0>>}, <<"{bad,<<255,0>>}">>},
            {#{a => 1, <<"a">> => 2}, <<"#{">>},
            {[improper | list], <<"improper">>},
            {[fun() -> 1 end | lists:seq(1, 1000000)], <<"...">>}
        ]
    ].

uncaught_exceptions_are_readable_in_erlang(_Config) ->
    ok = py:register_function(fail, fun(X) -> {ok, _} = {nowhere(), X} end),
    {error, {Class, Message, Traceback}} = py:eval("erlang.fail(1)"),
    ?assertEqual(<<"erlang.ErlangError">>, Class),
    ?assertEqual(<<"error: {badmatch,{nowhere,1}}">>, Message),
    [
        ?assertMatch({_, {_, _}}, {Traceback, binary:match(Traceback, Word)})
     || Word <- [<<"<py:eval>">>, <<"In Erlang:">>, <<"function_SUITE:">>, <<"function_SUITE.erl, line ">>]
    ].

python_exceptions_cross_an_erlang_function(_Config) ->
    ok = py:register_function(ask_python, fun(Code) ->
        case py:eval(Code) of
            {ok, Value} -> Value;
            {error, Reason} -> error(Reason)
        end
    end),
    {error, {<<"erlang.ErlangError">>, Message, _}} = py:eval("erlang.ask_python('1/0')"),
    ?assertMatch({_, _}, binary:match(Message, <<"ZeroDivisionError">>)),
    ?assertEqual({ok, 2}, py:eval("erlang.ask_python('1+1')")).

arguments_that_cannot_cross_are_refused_at_the_call(_Config) ->
    Self = self(),
    ok = py:register_function(f, fun(X) -> Self ! {called, X} end),
    [
        ?assertMatch({_, {error, {Class, _, _}}}, {Code, py:eval(["erlang.f(", Code, ")"])})
     || {Code, Class} <- [
            {"object()", <<"TypeError">>},
            {"[1, {2: int}]", <<"TypeError">>},
            {"float('nan')", <<"ValueError">>},
            {"'\\ud800'", <<"ValueError">>},
            {"{'a': 1, b'a': 2}", <<"ValueError">>},
            {"(erlang.Pid(b'no pid'),)", <<"ValueError">>}
        ]
    ],
    receive
        {called, X} -> ct:fail({called, X})
    after 0 -> ok
    end.

results_that_cannot_cross_are_type_errors(_Config) ->
    Port = hd(erlang:ports()),
    [
        begin
            ok = py:register_function(f, fun() -> Result end),
            {error, {<<"TypeError">>, Message, _}} = py:eval("erlang.f()"),
            ?assertMatch({_, {_, _}}, {Message, binary:match(Message, Word)})
        end
     || {Result, Word} <- [
            {fun() -> 1 end, <<"'f': a fun">>},
            {[{Port}], <<"'f': a port">>},
            {<<255>>, <<"UTF-8">>},
            {[1 | 2], <<"improper">>},
            {#{#{} => 1}, <<"dict">>}
        ]
    ].

%%--------------------------------------------------------------------------------------------------
%% The ways in which a call ends

kill_of_the_process_is_an_exception(_Config) ->
    ok = register_stuck(stuck),
    [
        begin
            Call = spawn_call(fun() -> py:eval("erlang.stuck(timeout=None)") end),
            exit(stuck_process(), Signal),
            ?assertMatch({error, {<<"erlang.ErlangError">>, Text, _}}, result(Call))
        end
     || {Signal, Text} <- [{kill, <<"exit: killed">>}, {{why, "not"}, <<"exit: {why,\"not\"}">>}]
    ].

exit_of_a_linked_process_is_an_exception(_Config) ->
    ok = py:register_function(f, fun() ->
        _ = spawn_link(fun() -> exit(oops) end),
        receive
            never -> ok
        end
    end),
    {error, {<<"erlang.ErlangError">>, <<"exit: oops">>, _}} = py:eval("erlang.f(timeout=None)"),
    ?assertEqual({ok, 1}, py:eval("1")).

timeout_kills_the_process(_Config) ->
    ok = register_stuck(stuck),
    [
        begin
            Call = spawn_call(fun() -> py:eval(["erlang.", Code]) end),
            Monitor = monitor(process, stuck_process()),
            ?assertMatch({error, {<<"TimeoutError">>, _, _}}, result(Call)),
            await_down(Monitor, killed)
        end
     || Code <- ["stuck(timeout=0.05)", "call('stuck', timeout=0.05)"]
    ].

no_timeout_waits_for_ever(_Config) ->
    ok = register_stuck(stuck),
    [
        begin
            Call = spawn_call(fun() -> py:eval("erlang.stuck(timeout=t)", #{t => Timeout}) end),
            stuck_process() ! {go_on, Timeout},
            ?assertEqual({ok, Back}, result(Call))
        end
     || {Timeout, Back} <- [{none, none}, {1.0e300, 1.0e300}, {1 bsl 70, 1 bsl 70}]
    ].

bad_timeouts_are_refused(_Config) ->
    ok = py:register_function(f, fun() -> 1 end),
    [
        ?assertMatch({_, {error, {Class, _, _}}}, {Code, py:eval(["erlang.f(timeout=", Code, ")"])})
     || {Code, Class} <- [
            {"-1", <<"ValueError">>},
            {"float('nan')", <<"ValueError">>},
            {"'1'", <<"TypeError">>},
            {"[]", <<"TypeError">>}
        ]
    ],
    ?assertEqual({ok, 1}, py:eval("erlang.f(timeout=float('inf'))")).

answers_that_race_with_timeouts_are_never_confused(_Config) ->
    ok = py:register_function(same, fun(Value) -> Value end),
    ok = py:exec(
        "import random\n"
        "def race(thread):\n"
        "    answered = 0\n"
        "    for n in range(200):\n"
        "        try:\n"
        "            assert erlang.same((thread, n), timeout=random.random() / 1000) == (thread, n)\n"
        "            answered += 1\n"
        "        except TimeoutError: pass\n"
        "    return answered\n"
        "with concurrent.futures.ThreadPoolExecutor(10) as pool:\n"
        "    answered = sum(pool.map(race, range(10)))\n"
        "assert erlang.same('last', timeout=None) == 'last'\n"
        "del pool\n"
    ),
    {ok, Answered} = py:eval("answered"),
    ct:pal("~b of 2000 were answered", [Answered]).

running_calls_outlive_their_registration(_Config) ->
    ok = register_stuck(stuck),
    Call = spawn_call(fun() -> py:eval("erlang.stuck(timeout=None)") end),
    Pid = stuck_process(),
    ok = py:unregister_function(stuck),
    {error, {<<"LookupError">>, _, _}} = py:eval("erlang.call('stuck')"),
    Pid ! {go_on, here},
    ?assertEqual({ok, <<"here">>}, result(Call)).

timeout_of_the_outer_call_interrupts_the_wait(_Config) ->
    ok = register_stuck(stuck),
    ok = py:exec(
        "def wait(pid):\n"
        "    try: erlang.stuck(timeout=None)\n"
        "    except BaseException as e:\n"
        "        erlang.send(pid, type(e).__name__)\n"
        "        raise\n"
    ),
    {error, timeout} = py:call('__main__', wait, [self()], #{}, 50),
    Monitor = monitor(process, stuck_process()),
    receive
        <<"Interrupted">> -> ok
    end,
    await_down(Monitor),
    ?assertEqual({ok, 1}, py:eval("1")).

death_of_the_outer_caller_interrupts_the_wait(_Config) ->
    ok = register_stuck(stuck),
    ok = py:register_function(ask_python, fun() -> py:eval("erlang.stuck(timeout=None)") end),
    {Caller, Down} = spawn_call(fun() -> py:eval("erlang.ask_python(timeout=None)") end),
    Monitor = monitor(process, stuck_process()),
    exit(Caller, kill),
    await_down(Down, killed),
    %% All the way down: Python, the function, Python again, its function.
    await_down(Monitor, killed).

%% What is left behind would be seen at the end of the case, or by the last call.
interrupts_that_race_with_answers_leave_nothing_behind(_Config) ->
    ok = py:register_function(same, fun(Value) -> Value end),
    Calls = [
        spawn_call(fun() ->
            [
                case py:eval("erlang.same(x, timeout=None)", #{x => {N, M}}, rand:uniform(4) - 1) of
                    {ok, {N, M}} -> answered;
                    {error, timeout} -> timeout;
                    %% It is done before the timeout can be told, but not with an answer.
                    {error, {<<"erlang.Interrupted">>, _, _}} -> interrupted
                end
             || M <- lists:seq(1, 200)
            ]
        end)
     || N <- lists:seq(1, 10)
    ],
    Outcomes = lists:append([result(Call) || Call <- Calls]),
    ct:pal("~p", [[{Kind, length([1 || K <- Outcomes, K =:= Kind])} || Kind <- lists:usort(Outcomes)]]),
    [?assertEqual({ok, N}, py:eval("erlang.same(n)", #{n => N})) || N <- lists:seq(1, 20)].

interrupt_reaches_a_callback_that_waits(Config) ->
    ok = register_stuck(stuck),
    ok = reactor_case:exec(
        "import erlang\n"
        "class Waits(reactor_case.Counted):\n"
        "    def data_received(self, data):\n"
        "        erlang.stuck(timeout=None)\n"
    ),
    ok = reactor_case:use("Waits"),
    Client = reactor_case:open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "x"),
    Monitor = monitor(process, stuck_process()),
    [Context] = py_reactor_pool:contexts(),
    ok = py_reactor_context:interrupt(Context),
    await_down(Monitor, killed),
    ?assertEqual(<<>>, reactor_case:await_closed(Client)),
    reactor_case:await_ledger(1),
    ?assertEqual([<<"exception">>], reactor_case:loss_reasons()).

exception_in_another_thread_leaves_a_wait_alone(_Config) ->
    ok = register_stuck(stuck),
    Call = spawn_call(fun() -> py:eval("erlang.stuck(timeout=None)") end),
    Pid = stuck_process(),
    [{error, timeout} = py:eval("[None for _ in iter(int, 1)]", #{}, 20) || _ <- lists:seq(1, 5)],
    Pid ! {go_on, 7},
    ?assertEqual({ok, 7}, result(Call)).

forked_child_has_no_functions(_Config) ->
    ok = py:register_function(f, fun() -> 1 end),
    ok = py:exec(
        "import os\n"
        "from erlang import f\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    status = 0\n"
        "    for ask in (f, lambda: erlang.call('f')):\n"
        "        try: ask()\n"
        "        except OSError as e: status += isinstance(e, TimeoutError)\n"
        "        else: status += 1\n"
        "    status += hasattr(erlang, 'f') + ('f' in dir(erlang))\n"
        "    os._exit(status)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    ).

%% Who waits sends nothing more; only giving up at once, again and again, could fill a mailbox.
flood_of_abandoned_calls_is_bounded(_Config) ->
    ok = py:register_function(f, fun() -> 1 end),
    ok = sys:suspend(py_reactor_functions),
    ok = py:exec(
        "import collections\n"
        "seen = collections.Counter()\n"
        "for _ in range(12_000):\n"
        "    try: erlang.f(timeout=0)\n"
        "    except Exception as e: seen[getattr(e, 'reason', type(e).__name__)] += 1\n"
    ),
    ?assertEqual({ok, #{<<"TimeoutError">> => 10000, <<"overload">> => 2000}}, py:eval("dict(seen)")),
    {message_queue_len, Length} = process_info(whereis(py_reactor_functions), message_queue_len),
    ?assertEqual(10000, Length),
    ok = sys:resume(py_reactor_functions),
    wait_until("there is room again", fun() -> py:eval("erlang.f()") end, {ok, 1}).

%%--------------------------------------------------------------------------------------------------
%% The server and the application

stop_of_the_application_ends_every_wait(_Config) ->
    ok = register_stuck(stuck),
    ok = py:exec(in_threads("erlang.stuck(timeout=None)", 5)),
    Monitors = [monitor(process, stuck_process()) || _ <- lists:seq(1, 5)],
    ok = application:stop(py_reactor),
    [await_down(Monitor) || Monitor <- Monitors],
    ok = application:start(py_reactor),
    ?assertEqual({ok, [{<<"exit">>, <<"stopped">>} || _ <- Monitors]}, py:eval("joined()")).

stop_while_call_threads_wait_answers_their_callers(_Config) ->
    ok = register_stuck(stuck),
    Calls = [spawn_call(fun() -> py:eval("erlang.stuck(timeout=None)") end) || _ <- lists:seq(1, 4)],
    Monitors = [monitor(process, stuck_process()) || _ <- Calls],
    Queued = spawn_call(fun() -> py:eval("erlang.stuck(timeout=None)") end),
    ok = application:stop(py_reactor),
    [?assertMatch({error, {_, _, _}}, result(Call)) || Call <- Calls],
    ?assertMatch({error, _}, result(Queued)),
    [await_down(Monitor) || Monitor <- Monitors].

functions_end_with_the_application(_Config) ->
    ok = py:register_function(f, fun() -> 1 end),
    ok = py:exec("from erlang import f"),
    ok = application:stop(py_reactor),
    ?assertEqual([], py:functions()),
    ok = application:start(py_reactor),
    ?assertEqual([], py:functions()),
    {error, {<<"LookupError">>, _, _}} = py:eval("f()"),
    {ok, false} = py:eval("hasattr(erlang, 'f')"),
    ok = py:register_function(f, fun() -> 2 end),
    ?assertEqual({ok, 2}, py:eval("f()")).

calls_are_refused_while_the_application_is_stopped(_Config) ->
    ok = py:register_function(f, fun() -> 1 end),
    %% No call reaches Python meanwhile, so the thread is told by one pipe and tells by another.
    [Go, Told] = Pipes = [filename:absname(["function_suite_", Name, $_, os:getpid()]) || Name <- ["go", "told"]],
    ["" = os:cmd("mkfifo " ++ Pipe) || Pipe <- Pipes],
    ok = py:exec(
        "def call_when_told(go, told):\n"
        "    with open(go) as pipe: pipe.read()\n"
        "    with open(told, 'w') as pipe: pipe.write(repr(outcome(lambda: erlang.call('f'))))\n"
    ),
    ok = py:exec(in_threads(io_lib:format("call_when_told('~ts', '~ts')", Pipes), 1)),
    ok = application:stop(py_reactor),
    ?assertEqual({error, not_running}, py:register_function(g, fun() -> 1 end)),
    ?assertEqual({error, not_running}, py:unregister_function(f)),
    ?assertEqual([], py:functions()),
    "" = os:cmd("echo go > " ++ Go),
    ?assertEqual("('exit', 'not_running')", os:cmd("cat " ++ Told)),
    ok = application:start(py_reactor),
    ?assertEqual({ok, [none]}, py:eval("joined()")),
    [ok = file:delete(Pipe) || Pipe <- Pipes].

death_of_the_server_ends_waits_and_keeps_names(_Config) ->
    ok = register_stuck(stuck),
    ok = py:exec(in_threads("erlang.stuck(timeout=None)", 3)),
    Monitors = [monitor(process, stuck_process()) || _ <- lists:seq(1, 3)],
    Server = whereis(py_reactor_functions),
    exit(Server, kill),
    [await_down(Monitor) || Monitor <- Monitors],
    ?assertEqual({ok, [{<<"exit">>, <<"stopped">>} || _ <- Monitors]}, py:eval("joined()")),
    wait_until("another one serves", fun() -> is_other(whereis(py_reactor_functions), Server) end),
    ?assertEqual([<<"stuck">>], py:functions()),
    ok = py:register_function(f, fun() -> 1 end),
    ?assertEqual({ok, 1}, py:eval("erlang.f()")).

restarts_under_load_lose_no_caller(_Config) ->
    ok = py:register_function(same, fun(Value) -> Value end),
    ok = py:exec(
        "ended = False\n"
        "def load(thread):\n"
        "    answered = 0\n"
        "    while not ended:\n"
        "        try:\n"
        "            assert erlang.call('same', (thread, answered), timeout=None) == (thread, answered)\n"
        "            answered += 1\n"
        "        except erlang.ErlangError as e:\n"
        "            assert e.reason in ('stopped', 'not_running'), e\n"
        "    return answered\n" ++ in_threads("load(threading.get_ident())", 8)
    ),
    [
        begin
            Server = whereis(py_reactor_functions),
            exit(Server, kill),
            wait_until("another one serves", fun() -> is_other(whereis(py_reactor_functions), Server) end),
            %% Not more often than its supervisor allows.
            wait_until("it answers", fun() -> py:eval("erlang.call('same', 1)") end, {ok, 1})
        end
     || _ <- lists:seq(1, 5)
    ],
    ok = py:exec("ended = True"),
    {ok, Answered} = py:eval("joined()"),
    ?assertEqual(8, length([N || N <- Answered, is_integer(N)])).

functions_survive_a_reload_of_the_library(_Config) ->
    ok = py:register_function(f, fun() -> 1 end),
    [
        begin
            true = code:delete(py_nif),
            _ = code:purge(py_nif),
            _ = code:load_file(py_nif),
            ?assertEqual({ok, 1}, py:eval("erlang.f()")),
            ok = py:register_function(g, fun() -> 2 end),
            ?assertEqual({ok, 2}, py:eval("erlang.g()"))
        end
     || _ <- lists:seq(1, 3)
    ].

server_survives_strange_messages(_Config) ->
    Server = whereis(py_reactor_functions),
    [Server ! Message || Message <- [nonsense, {py_function, 7}, {'EXIT', self(), x}, {py_function_over, 7}]],
    Server ! {py_function_over, self()},
    ok = gen_server:cast(Server, nonsense),
    ?assertEqual({error, unknown_call}, gen_server:call(Server, nonsense)),
    %% A reference that is no call costs its own process only.
    Server ! {py_function, make_ref()},
    ok = py:register_function(f, fun() -> 1 end),
    ?assertEqual({ok, 1}, py:eval("erlang.f()")),
    ?assertEqual(Server, whereis(py_reactor_functions)).

%%--------------------------------------------------------------------------------------------------
%% Helpers

helpers() ->
    "import concurrent.futures, erlang, threading\n"
    "def outcome(job):\n"
    "    try: return job()\n"
    "    except erlang.ErlangError as e: return e.kind, e.reason\n"
    "    except BaseException as e: return type(e).__name__\n"
    "def start(jobs):\n"
    "    global threads, outcomes\n"
    "    outcomes = []\n"
    "    threads = [\n"
    "        threading.Thread(target=lambda job=job: outcomes.append(outcome(job))) for job in jobs\n"
    "    ]\n"
    "    for thread in threads: thread.start()\n"
    "def joined():\n"
    "    for thread in threads: thread.join()\n"
    "    return outcomes\n".

%% Statements that evaluate an expression in some new threads; `joined()' has the outcomes.
in_threads(Expression, Count) ->
    "start([lambda: " ++ lists:flatten(Expression) ++ "] * " ++ integer_to_list(Count) ++ ")\n".

%% A function that tells this process of its own one, then waits for what it shall return.
register_stuck(Name) ->
    Self = self(),
    py:register_function(Name, fun() ->
        Self ! {stuck, self()},
        receive
            {go_on, Value} -> Value
        end
    end).

stuck_process() ->
    receive
        {stuck, Pid} -> Pid
    end.

%% Lets nobody through before so many have come.
spawn_gate(Count) ->
    spawn_link(fun() ->
        Waiting = [
            receive
                {come, Pid} -> Pid
            end
         || _ <- lists:seq(1, Count)
        ],
        [Pid ! {self(), open} || Pid <- Waiting]
    end).

through(Gate, Value) ->
    Gate ! {come, self()},
    receive
        {Gate, open} -> Value
    end.

await_down(Monitor) ->
    receive
        {'DOWN', Monitor, process, _, Reason} -> Reason
    end.

await_down(Monitor, Reason) ->
    ?assertEqual(Reason, await_down(Monitor)).

spawn_call(Function) ->
    spawn_monitor(fun() -> exit({result, Function()}) end).

result({_Pid, Monitor}) ->
    {result, Result} = await_down(Monitor),
    Result.

is_other(Pid, Server) ->
    is_pid(Pid) andalso Pid =/= Server.

%% The compiler does not look through it.
nowhere() ->
    list_to_atom("nowhere").

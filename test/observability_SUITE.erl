%%% Seen from outside: metrics as Prometheus reads them, events, callbacks that take too long.
-module(observability_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_logged/1, echoes/2, exec/1, logged/1, open/1, use/1, wait_until/2]).

-define(PATIENCE_MS, 20000).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, metrics}, {group, events}, {group, slow_callbacks}, no_watchdog_when_it_is_off].

groups() ->
    [
        {metrics, [], [
            prometheus_reads_what_was_counted,
            each_listener_has_its_own_samples,
            any_name_can_be_a_label,
            a_context_has_the_same_label_after_a_restart,
            metrics_of_a_stopped_application_are_none
        ]},
        {events, [], [
            contexts_tell_of_their_life_and_death,
            listeners_tell_what_becomes_of_them,
            a_failed_callback_is_an_event,
            a_handler_may_be_a_module_and_a_function,
            a_handler_that_is_none_is_refused,
            a_handler_that_fails_hurts_nobody,
            a_process_that_a_handler_links_to_hurts_nobody,
            a_handler_that_hangs_holds_up_nobody,
            figures_are_told_regularly
        ]},
        {slow_callbacks, [], [
            a_callback_that_waits_is_logged_while_it_runs,
            a_loop_in_python_is_logged_while_it_runs,
            a_callback_that_keeps_the_gil_is_logged_without_its_stack,
            every_callback_can_be_slow,
            a_class_that_hides_its_name_is_named,
            a_slow_callback_is_logged_again_when_it_has_taken_twice_as_long,
            a_slow_callback_is_an_event,
            short_callbacks_wake_nobody,
            the_first_job_of_a_new_context_can_be_slow,
            who_wants_to_know_sooner_does,
            who_begins_to_watch_is_told_of_what_goes_on,
            a_job_that_has_ended_is_not_looked_at
        ]}
    ].

init_per_suite(Config) ->
    [{root, root(code:lib_dir(py_reactor))} | Config].

end_per_suite(_Config) ->
    reactor_case:stop().

root(Folder) ->
    case filelib:is_regular(filename:join(Folder, "CONTRIBUTING.md")) of
        true -> Folder;
        false when Folder =/= "/" -> root(filename:dirname(Folder))
    end.

init_per_testcase(Case, Config) ->
    true = register(told, self()),
    reactor_case:start(settings(Case)),
    ok = exec(helpers()),
    reactor_case:begin_case(Config).

end_per_testcase(_Case, Config) ->
    ok = py_reactor_events:set_handler(undefined),
    ok = exec("slow.gate.set()"),
    _ = [py_reactor:stop_listener(Name) || Name <- py_reactor:which_listeners()],
    reactor_case:end_case(Config).

settings(figures_are_told_regularly) -> #{measurement_interval_ms => 10};
settings(the_first_job_of_a_new_context_can_be_slow) -> #{slow_callback_ms => 300};
settings(who_wants_to_know_sooner_does) -> #{contexts => 1};
settings(no_watchdog_when_it_is_off) -> #{slow_callback_ms => 0};
settings(_) -> #{contexts => 2}.

%% A protocol whose callbacks wait at a gate, each in the way that its peer asks for; and one that
%% echoes.
helpers() ->
    <<
        "import sys, types\n"
        "slow = sys.modules.setdefault('slow', types.ModuleType('slow'))\n"
        "exec('''\n"
        "import ctypes, threading\n"
        "import erlang.reactor as reactor\n"
        "import reactor_case\n"
        "\n"
        "gate = threading.Event()\n"
        "\n"
        "class Slow(reactor_case.Counted):\n"
        "    def data_received(self, data):\n"
        "        getattr(self, data.decode())()\n"
        "        self.write_buffer += b'.'\n"
        "    def wait(self):\n"
        "        gate.wait()\n"
        "    def loop(self):\n"
        "        while not gate.is_set(): pass\n"
        "    def keep(self):\n"
        "        ctypes.PyDLL(None).sleep(2)\n"
        "        gate.wait()\n"
        "    def fail(self):\n"
        "        raise ValueError('no')\n"
        "\n"
        "class SlowToLose(reactor_case.Counted):\n"
        "    def connection_lost(self):\n"
        "        gate.wait()\n"
        "        super().connection_lost()\n"
        "\n"
        "class SlowToMake(reactor_case.Counted):\n"
        "    def __init__(self):\n"
        "        gate.wait()\n"
        "\n"
        "class Hiding(type):\n"
        "    def __getattribute__(self, name):\n"
        "        if name in (\"__name__\", \"__qualname__\", \"__module__\"): gate.wait()\n"
        "        return super().__getattribute__(name)\n"
        "\n"
        "class Hidden(Slow, metaclass=Hiding):\n"
        "    pass\n"
        "for made in (Slow, SlowToLose, SlowToMake): made.__module__ = \"slow\"\n"
        "type.__setattr__(Hidden, \"__module__\", \"slow\")\n"
        "''', vars(slow)) if not hasattr(slow, 'gate') else slow.gate.clear()\n"
    >>.

%%--------------------------------------------------------------------------------------------------
%% Metrics

prometheus_reads_what_was_counted(Config) ->
    ok = use("reactor_case.Echo"),
    Client = open(?config(listener, Config)),
    [ok = echoes(Client, <<"12345">>) || _ <- lists:seq(1, 7)],
    Samples = parse(Config),
    [{context, <<"1">>}, {context, <<"2">>}] = lists:usort(labels(<<"py_reactor_context_reads_total">>, Samples)),
    %% The bystander goes on: at least what this client did.
    ?assert(total(<<"py_reactor_context_reads_total">>, Samples) >= 7),
    ?assert(total(<<"py_reactor_context_callbacks_total">>, Samples) >= 8),
    ?assert(total(<<"py_reactor_context_received_bytes_total">>, Samples) >= 35),
    ?assert(total(<<"py_reactor_context_callback_seconds_total">>, Samples) > 0),
    ?assertEqual(2.0, total(<<"py_reactor_context_connections">>, Samples)),
    ok = gen_tcp:close(Client),
    Closed = fun() ->
        [Count] = [
            N
         || {<<"py_reactor_context_connections_closed_total">>, _, Labels, N} <- parse(Config),
            lists:member({<<"reason">>, <<"eof">>}, Labels),
            N > 0
        ],
        Count =:= 1.0
    end,
    ?assertEqual(true, await(Closed)).

each_listener_has_its_own_samples(Config) ->
    [A, B] = [listen(Name, 'Echo', #{max_connections => 10}) || Name <- [a, b]],
    [ok = echoes(A, <<"x">>) || _ <- lists:seq(1, 3)],
    ok = echoes(B, <<"x">>),
    Samples = parse(Config),
    Reads = fun(Name) ->
        [N] = values(<<"py_reactor_listener_reads_total">>, [{<<"listener">>, Name}], Samples),
        N
    end,
    ?assertEqual({3.0, 1.0}, {Reads(<<"a">>), Reads(<<"b">>)}),
    ?assertEqual(20.0, total(<<"py_reactor_listener_max_connections">>, Samples)),
    Status = fun(Labels) -> values(<<"py_reactor_listener_status">>, Labels, Samples) end,
    ?assertEqual([1.0], Status([{<<"listener">>, <<"a">>}, {<<"status">>, <<"running">>}])),
    ?assertEqual([0.0], Status([{<<"listener">>, <<"a">>}, {<<"status">>, <<"suspended">>}])),
    [ok = gen_tcp:close(Client) || Client <- [A, B]].

any_name_can_be_a_label(Config) ->
    Names = ['we"ird\\na\nme', <<"a">>, a, {shop, "api"}, 'grüße', '1'],
    Clients = [listen(Name, 'Echo', #{}) || Name <- Names],
    [ok = echoes(Client, <<"x">>) || Client <- Clients],
    Found = [L || {_, L} <- labels(<<"py_reactor_listener_reads_total">>, parse(Config))],
    Wanted = [unicode:characters_to_binary(io_lib:format("~0tp", [Name])) || Name <- Names],
    ?assertEqual(lists:sort(Wanted), lists:sort(Found)),
    [ok = gen_tcp:close(Client) || Client <- Clients].

a_context_has_the_same_label_after_a_restart(Config) ->
    process_flag(trap_exit, true),
    {ok, Named} = py_reactor_context:start_link(#{name => named_context}),
    Labels = fun() -> lists:usort([L || {_, L} <- labels(<<"py_reactor_context_callbacks_total">>, parse(Config))]) end,
    Wanted = [<<"1">>, <<"2">>, <<"named_context">>],
    ?assertEqual(Wanted, Labels()),
    %% The one without the bystander.
    [{Idle, Index}] = [
        {Pid, Label}
     || {Pid, _, Label, _} <- py_reactor_pool:list(),
        is_integer(Label),
        #{active := 0} <- [py_reactor_context:stats(Pid)]
    ],
    ok = py_reactor_context:stop(Idle),
    ok = py_reactor_context:stop(Named),
    {ok, Again} = py_reactor_context:start_link(#{name => named_context}),
    IsBack = fun() -> [Pid || {Pid, _, L, _} <- py_reactor_pool:list(), L =:= Index, Pid =/= Idle] =/= [] end,
    wait_until("the context is back", IsBack),
    ?assertEqual(Wanted, Labels()),
    ok = py_reactor_context:stop(Again).

metrics_of_a_stopped_application_are_none(_Config) ->
    Empty = py_reactor_metrics:render(#{contexts => [], listeners => []}),
    ?assertMatch(<<"# HELP py_reactor_info ", _/binary>>, Empty),
    ?assertEqual(nomatch, binary:match(Empty, <<"context">>)).

%%--------------------------------------------------------------------------------------------------
%% Events

contexts_tell_of_their_life_and_death(_Config) ->
    process_flag(trap_exit, true),
    tell_me(),
    {ok, Context} = py_reactor_context:start_link(#{name => told_context}),
    {#{contexts := 3, time_ms := _}, #{pid := Context}} = event([py_reactor, context, start], context, told_context),
    exit(Context, kill),
    {#{uptime_ms := Uptime, contexts := 2}, #{pid := Context, reason := killed}} =
        event([py_reactor, context, stop], context, told_context),
    ?assert(Uptime >= 0).

listeners_tell_what_becomes_of_them(_Config) ->
    tell_me(),
    {ok, _} = py_reactor:start_listener(told_listener, #{protocol => {reactor_case, 'Echo'}}),
    ok = py_reactor:suspend_listener(told_listener),
    ok = py_reactor:resume_listener(told_listener),
    {ok, 0} = py_reactor:drain_listener(told_listener, 1000),
    ok = py_reactor:stop_listener(told_listener),
    [
        {#{count := 1, time_ms := _}, _} = event([py_reactor, listener, What], name, told_listener)
     || What <- [start, suspend, resume, drain, stop]
    ].

a_failed_callback_is_an_event(Config) ->
    tell_me(),
    ok = use("slow.Slow"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "fail"),
    {#{count := 1}, Metadata} = event([py_reactor, callback, exception], protocol, <<"slow.Slow">>),
    #{callback := <<"data_received">>, peer := Peer, traceback := Traceback} = Metadata,
    {ok, Port} = inet:port(Client),
    ?assertEqual(iolist_to_binary(["127.0.0.1:", integer_to_list(Port)]), Peer),
    ?assertNotEqual(nomatch, binary:match(Traceback, <<"ValueError: no">>)),
    <<>> = reactor_case:await_closed(Client).

a_handler_may_be_a_module_and_a_function(_Config) ->
    ok = py_reactor_events:set_handler({?MODULE, tell}),
    ok = py_reactor_events:execute([own, event], #{n => 1}, #{key => mine}),
    {#{n := 1, time_ms := _}, #{key := mine}} = event([own, event], key, mine).

a_handler_that_is_none_is_refused(_Config) ->
    [
        ?assertError(badarg, py_reactor_events:set_handler(Handler))
     || Handler <- [telemetry, fun(_, _) -> ok end, {a, b, c}, {"a", b}, 1]
    ],
    ?assertMatch(
        {error, {bad_setting, event_handler, _}},
        py_reactor_settings:check_values(#{event_handler => fun() -> ok end})
    ).

a_handler_that_fails_hurts_nobody(_Config) ->
    Events = whereis(py_reactor_events),
    Test = self(),
    ok = py_reactor_events:set_handler(fun(_, #{n := N}, _) -> Test ! {ran, N}, error({unlucky, N}) end),
    [ok = py_reactor_events:execute([own, event], #{n => N}, #{}) || N <- lists:seq(1, 100)],
    receive {ran, 100} -> ok after ?PATIENCE_MS -> error(timeout) end,
    %% Logged once, not a hundred times: a round trip through the process comes after it all.
    ok = py_reactor_events:set_handler(fun(_, _, _) -> Test ! ran_again end),
    ok = py_reactor_events:execute([own, event], #{}, #{}),
    receive ran_again -> ok after ?PATIENCE_MS -> error(timeout) end,
    ?assertMatch(
        [#{level := error, reason := {unlucky, 1}, event := [own, event]}],
        logged(#{what => event_handler_failed})
    ),
    ?assertEqual(Events, whereis(py_reactor_events)).

a_process_that_a_handler_links_to_hurts_nobody(_Config) ->
    Events = whereis(py_reactor_events),
    ok = py_reactor_events:set_handler(fun(_, _, _) -> spawn_link(fun() -> exit(unlucky) end) end),
    [ok = py_reactor_events:execute([own, event], #{}, #{}) || _ <- lists:seq(1, 100)],
    #{reason := unlucky} = await_logged(#{what => event_handler_failed}),
    tell_me(),
    ok = py_reactor_events:execute([own, event], #{}, #{key => mine}),
    _ = event([own, event], key, mine),
    ?assertEqual(Events, whereis(py_reactor_events)).

a_handler_that_hangs_holds_up_nobody(_Config) ->
    Test = self(),
    ok = py_reactor_events:set_handler(fun
        (_, #{n := 1}, _) ->
            Test ! {waiting, self()},
            receive go -> ok end;
        (_, #{n := N}, _) ->
            Test ! {ran, N}
    end),
    ok = py_reactor_events:execute([own, event], #{n => 1}, #{}),
    Handler = receive {waiting, Pid} -> Pid after ?PATIENCE_MS -> error(timeout) end,
    %% 10,000 may wait.
    [ok = py_reactor_events:execute([own, event], #{n => N}, #{}) || N <- lists:seq(2, 10501)],
    Handler ! go,
    #{dropped := 500} = await_logged(#{what => events_dropped}),
    receive {ran, 10001} -> ok after ?PATIENCE_MS -> error(timeout) end,
    ok = py_reactor_events:execute([own, event], #{n => 10502}, #{}),
    receive {ran, Next} when Next > 10001 -> ?assertEqual(10502, Next) after ?PATIENCE_MS -> error(timeout) end.

figures_are_told_regularly(_Config) ->
    Client = listen(regular, 'Echo', #{}),
    ok = echoes(Client, <<"x">>),
    tell_me(),
    {#{active := 1, reads := 1} = OfListener, #{status := running, pid := _}} =
        event([py_reactor, listener, measurement], name, regular),
    {#{callbacks := _, busy_ms := _} = OfContext, #{pid := _}} = event([py_reactor, context, measurement], context, 1),
    [?assert(is_integer(N)) || Figures <- [OfListener, OfContext], N <- maps:values(Figures)],
    ?assertMatch(#{closed_by_eof := _}, OfListener),
    %% And again.
    _ = event([py_reactor, listener, measurement], name, regular),
    ok = gen_tcp:close(Client).

%%--------------------------------------------------------------------------------------------------
%% Slow callbacks

a_callback_that_waits_is_logged_while_it_runs(Config) ->
    {Client, Line} = slow("slow.Slow", "wait", Config),
    {ok, Port} = inet:port(Client),
    ?assertMatch(
        #{level := warning, callback := <<"data_received">>, protocol := <<"slow.Slow">>, fd := _, context := _}, Line
    ),
    ?assertEqual(iolist_to_binary(["127.0.0.1:", integer_to_list(Port)]), maps:get(peer, Line)),
    #{stack := Stack, text := Text} = Line,
    ?assertMatch({match, _}, re:run(Stack, "in data_received\n.*in wait\n.*threading.py\".*self\\._cond", [dotall])),
    ?assertMatch({match, _}, re:run(Text, "^slow\\.Slow\\.data_received of 127.* has been running for [0-9]+ ms", [])),
    goes_on(Client).

a_loop_in_python_is_logged_while_it_runs(Config) ->
    {Client, #{stack := Stack}} = slow("slow.Slow", "loop", Config),
    ?assertMatch({match, _}, re:run(Stack, "in data_received\n.*in loop\n", [dotall])),
    goes_on(Client).

%% Nobody can have the stack while C code keeps the GIL; when it is had it says so.
a_callback_that_keeps_the_gil_is_logged_without_its_stack(Config) ->
    ok = use("slow.Slow"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "keep"),
    Without = await_one(fun(Line) -> is_slow(Line) andalso not is_map_key(stack, Line) end),
    ?assertMatch(#{callback := <<"data_received">>, fd := _}, Without),
    ?assertMatch({match, _}, re:run(maps:get(text, Without), "the GIL is held")),
    With = await_one(fun(Line) -> is_slow(Line) andalso is_map_key(stack, Line) end),
    ?assertMatch({match, _}, re:run(maps:get(text, With), "the GIL was held")),
    ?assertMatch({match, _}, re:run(maps:get(stack, With), "in keep\n")),
    goes_on(Client).

every_callback_can_be_slow(Config) ->
    ok = use("slow.SlowToLose"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:close(Client),
    #{protocol := <<"slow.SlowToLose">>} = await_logged(#{what => slow_callback, callback => <<"connection_lost">>}),
    ok = exec("slow.gate.set()"),
    reactor_case:await_ledger(1),
    ok = exec("slow.gate.clear()"),
    slow_to_make(fun reactor_case:handoff/1, Config).

%% Its metaclass is asked for the name by nobody, least of all by Python's main thread, which would
%% not come back.
a_class_that_hides_its_name_is_named(Config) ->
    {Client, Line} = slow("slow.Hidden", "wait", Config),
    ?assertMatch(#{protocol := <<"slow.Hidden">>}, Line),
    goes_on(Client).

a_slow_callback_is_logged_again_when_it_has_taken_twice_as_long(Config) ->
    {Client, #{age_ms := First}} = slow("slow.Slow", "wait", Config),
    Again = await_one(fun(Line) -> is_slow(Line) andalso maps:get(age_ms, Line) > First end),
    ?assert(maps:get(age_ms, Again) >= 200),
    ?assert(First >= 100),
    goes_on(Client).

a_slow_callback_is_an_event(Config) ->
    tell_me(),
    {Client, _} = slow("slow.Slow", "wait", Config),
    {#{age_ms := _, waited_ms := _}, Metadata} = event([py_reactor, callback, slow], protocol, <<"slow.Slow">>),
    ?assertMatch(#{callback := <<"data_received">>, peer := _, stack := _, context := _, pid := _}, Metadata),
    goes_on(Client).

%% Time is the subject: in this one the watchdog looked five times when it did so by itself.
short_callbacks_wake_nobody(Config) ->
    ok = use("slow.Slow"),
    ok = exec("slow.gate.set()"),
    Client = open(?config(listener, Config)),
    1 = erlang:trace(whereis(py_reactor_watchdog), true, ['receive']),
    Until = erlang:monotonic_time(millisecond) + 500,
    Echoes = echoes_until(Until, Client, 0),
    1 = erlang:trace(whereis(py_reactor_watchdog), false, ['receive']),
    ?assert(Echoes > 0),
    nothing_short_told(),
    ok = gen_tcp:close(Client).

%% On a machine that is busy one may have been slow after all.
nothing_short_told() ->
    receive
        {trace, _, 'receive', {py_slow, _, #{age_ms := AgeMs}}} when AgeMs >= 100 -> nothing_short_told();
        {trace, _, 'receive', {py_look, _, _}} -> nothing_short_told();
        {trace, _, 'receive', Message} -> error({woken_by, Message})
    after 0 -> ok
    end.

echoes_until(Until, Client, Echoes) ->
    case erlang:monotonic_time(millisecond) < Until of
        true ->
            ok = gen_tcp:send(Client, "wait"),
            {ok, <<".">>} = gen_tcp:recv(Client, 1, ?PATIENCE_MS),
            echoes_until(Until, Client, Echoes + 1);
        false ->
            Echoes
    end.

%% Time is the subject: all are idle, and one context was started after the others were asked to say when
%% they begin a job, and before it was certain that none did.
the_first_job_of_a_new_context_can_be_slow(Config) ->
    true = erlang:suspend_process(?config(bystander, Config)),
    timer:sleep(900),
    Contexts = [Context || {ok, Context} <- [py_reactor_context:start_link(#{}) || _ <- [asked, not_asked]]],
    timer:sleep(900),
    slow_to_make(fun(Accepted) -> py_reactor_context:handoff(lists:last(Contexts), Accepted, #{}) end, Config),
    [ok = py_reactor_context:stop(Context) || Context <- Contexts],
    true = erlang:resume_process(?config(bystander, Config)).

%% As when the application starts again with another `slow_callback_ms'. Time is the subject: the next look
%% is an hour away.
who_wants_to_know_sooner_does(Config) ->
    ok = py_nif:watch_jobs(3_600_000),
    timer:sleep(300),
    ok = py_nif:watch_jobs(100),
    ok = use("slow.Slow"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "wait"),
    ?assert(slow_for(100) >= 100),
    goes_on(Client).

%% Who was told before may have died before it did anything about it.
who_begins_to_watch_is_told_of_what_goes_on(Config) ->
    ok = py_nif:watch_jobs(1),
    ok = use("slow.Slow"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "wait"),
    Told = slow_for(1000),
    ok = py_nif:watch_jobs(1),
    %% Not only when it has taken twice as long.
    ?assert(slow_for(1000) < 2 * Told),
    goes_on(Client).

%% Waits to be told of a callback that has been running for at least so long; returns for how long.
slow_for(AgeMs) ->
    receive
        {py_slow, _Context, #{callback := <<"data_received">>, age_ms := Age}} when Age >= AgeMs -> Age
    after ?PATIENCE_MS -> error(not_told)
    end.

a_job_that_has_ended_is_not_looked_at(_Config) ->
    [{_, Handle, _, _} | _] = py_reactor_pool:list(),
    ok = py_nif:context_look(Handle, 1 bsl 60, 7),
    receive {py_look, 7, Seen} -> ?assertEqual(ended, Seen) after ?PATIENCE_MS -> error(timeout) end.

no_watchdog_when_it_is_off(_Config) ->
    ?assertEqual(undefined, whereis(py_reactor_watchdog)),
    ?assertMatch({error, {bad_setting, slow_callback_ms, _}}, py_reactor_settings:check_values(#{slow_callback_ms => -1})),
    ?assertEqual(ok, py_reactor_settings:check_values(#{slow_callback_ms => infinity})).

%%--------------------------------------------------------------------------------------------------

%% A protocol that takes long to make is logged while it is made, for who hands its connection over.
slow_to_make(HandOver, Config) ->
    ok = use("slow.SlowToMake"),
    Making = reactor_case:connect(?config(listener, Config)),
    Accepted = reactor_case:accept(?config(listener, Config)),
    {Handing, Monitor} = spawn_monitor(fun() ->
        receive go -> ok = HandOver(Accepted) end
    end),
    ok = gen_tcp:controlling_process(Accepted, Handing),
    Handing ! go,
    #{protocol := <<"slow.SlowToMake">>} = await_logged(#{what => slow_callback, callback => <<"factory">>}),
    ok = exec("slow.gate.set()"),
    receive {'DOWN', Monitor, process, _, normal} -> ok after ?PATIENCE_MS -> error(timeout) end,
    ok = gen_tcp:close(Making).

%% A client whose protocol is in the callback, and the first line about it.
slow(Factory, Way, Config) ->
    ok = use(Factory),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, Way),
    {Client, await_logged(#{what => slow_callback, callback => <<"data_received">>})}.

%% It was running all the time.
goes_on(Client) ->
    ok = exec("slow.gate.set()"),
    {ok, <<".">>} = gen_tcp:recv(Client, 1, ?PATIENCE_MS),
    ok = gen_tcp:close(Client).

is_slow(Line) ->
    maps:get(what, Line, none) =:= slow_callback.

await_one(Predicate) ->
    wait_until("it is logged", fun() -> logged(Predicate) =/= [] end),
    hd(logged(Predicate)).

await(Fact) ->
    wait_until("it is so", fun() -> try Fact() catch error:{badmatch, _} -> false end end),
    true.

%% A client of a new listener.
listen(Name, Protocol, Options) ->
    {ok, _} = py_reactor:start_listener(Name, Options#{ip => loopback, protocol => {reactor_case, Protocol}}),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, py_reactor:get_port(Name), [binary, {active, false}]),
    Client.

tell_me() ->
    ok = py_reactor_events:set_handler(fun ?MODULE:tell/3).

tell(Event, Measurements, Metadata) ->
    told ! {event, Event, Measurements, Metadata}.

%% The next event of that name whose metadata has this value.
event(Event, Key, Value) ->
    receive
        {event, Event, Measurements, #{Key := Value} = Metadata} -> {Measurements, Metadata}
    after ?PATIENCE_MS -> error({no_event, Event, Key, Value})
    end.

%% What Prometheus' own parser makes of the metrics: {Name, Type, Labels, Value}.
parse(Config) ->
    Root = ?config(root, Config),
    File = filename:join(?config(priv_dir, Config), "metrics.txt"),
    ok = file:write_file(File, py_reactor:metrics()),
    Parsed = filename:join(?config(priv_dir, Config), "metrics.term"),
    Command = [
        filename:join(Root, ".venv/bin/python"), " ", filename:join(Root, "test/python/parse_metrics.py"),
        " <", File, " >", Parsed, " 2>&1; echo $?"
    ],
    case string:trim(os:cmd(lists:flatten(Command))) of
        "0" ->
            {ok, Samples} = file:consult(Parsed),
            Samples;
        _ ->
            {ok, Complaint} = file:read_file(Parsed),
            error({not_parsed, Complaint})
    end.

labels(Name, Samples) ->
    [{binary_to_atom(Label), Value} || {N, _, [{Label, Value} | _], _} <- Samples, N =:= Name].

values(Name, Labels, Samples) ->
    [Value || {N, _, L, Value} <- Samples, N =:= Name, lists:sort(L) =:= lists:sort(Labels)].

total(Name, Samples) ->
    lists:sum([Value || {N, _, _, Value} <- Samples, N =:= Name]).

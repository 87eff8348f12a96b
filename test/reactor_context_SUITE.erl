%%% Contexts: their life and death, their limits, how they park, and what a callback that blocks can
%%% and cannot hold up.
-module(reactor_context_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_closed/1, echoes/2, reset/1, wait_until/2]).
-import(told, [protocol/1, exec/1, eval/1, eval/2, next/0, next/1, nothing/0]).

-define(PATIENCE_MS, 20000).
%% Much longer than a case lasts: never parked.
-define(NEVER_MS, 16#7fffffff).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    told:cases(?MODULE).

%% The thread that sends in place of a scheduler starts when it is needed first, for good: an answer
%% of `overload' needs it.
init_per_suite(Config) ->
    told:start(#{max_connections => 1}),
    Pairs = [told:stream([{ip, {127, 0, 0, 1}}], []) || _ <- [1, 2]],
    ?assertEqual(
        [ok, {error, overload}], [py_reactor_context:handoff(Server, #{}) || {_, Server} <- Pairs]
    ),
    [ok = gen_tcp:close(Client) || {Client, _} <- Pairs],
    reactor_case:stop(),
    Config.

end_per_suite(_Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    told:start(#{contexts => 2}),
    true = register(told, self()),
    [Client, _] = Clients = [connect(Context) || Context <- pool()],
    echo_nothing(Client),
    [lost(C) || C <- Clients],
    nothing(),
    [{counts, reactor_case:counts()} | Config].

end_per_testcase(_Case, Config) ->
    true = eval("forget()"),
    %% A handle on any heap, say that of a logger handler which got a crash report with the state of
    %% a context, keeps the wake-up descriptor of its worker open.
    Collected = fun() ->
        _ = [erlang:garbage_collect(Pid) || Pid <- processes()],
        reactor_case:excess(reactor_case:counts(), ?config(counts, Config)) =:= #{}
    end,
    catch wait_until("counts are back", Collected),
    try reactor_case:await_counts(?config(counts, Config)) of
        ok -> ok
    catch
        error:Reason ->
            %% What failed first is what Common Test tells.
            case ?config(tc_status, Config) of
                ok -> {fail, Reason};
                {failed, _} -> ok
            end
    after
        reactor_case:stop()
    end.

%%--------------------------------------------------------------------------------------------------
%% Life

a_context_serves_what_it_is_given(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{}),
    [Client, Other] = [connect(Context) || _ <- [1, 2]],
    echoes(Client, rand:bytes(100_000)),
    echoes(Other, <<"too">>),
    ?assertMatch(#{accepted := 2, active := 2}, py_reactor_context:stats(Context)),
    [lost(C) || C <- [Client, Other]],
    ok = py_reactor_context:stop(Context),
    ?assertNot(is_process_alive(Context)),
    wait_until("it is off the list", fun() ->
        py_reactor_context:stats(Context) =:= {error, no_context}
    end).

a_context_has_the_name_it_is_given(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{name => kinds_context}),
    ?assertEqual(Context, whereis(kinds_context)),
    ?assertEqual(
        {error, {already_started, Context}}, py_reactor_context:start_link(#{name => kinds_context})
    ),
    Client = connect(kinds_context),
    echoes(Client, <<"by name">>),
    ?assertMatch(#{active := 1}, py_reactor_context:stats(kinds_context)),
    ok = py_reactor_context:interrupt(kinds_context),
    echoes(Client, <<"nothing to interrupt">>),
    lost(Client),
    ok = py_reactor_context:stop(kinds_context),
    %% The name is gone at once.
    ?assertEqual({error, no_context}, py_reactor_context:stats(kinds_context)),
    ?assertEqual({error, no_context}, py_reactor_context:interrupt(kinds_context)).

bad_options_are_answered_with_their_key(_Config) ->
    [
        ?assertEqual({error, {bad_option, Key}}, py_reactor_context:start_link(#{Key => Value}))
     || {Key, Values} <- [
            {name, [1, "name", <<"name">>, undefined]},
            {max_connections, [0, -1, 1.0, many, 1 bsl 20 + 1, 1 bsl 40, 1 bsl 100]},
            {linger_ms, [-1, 1.0, infinity, 1 bsl 31, 1 bsl 64, 1 bsl 100]},
            {nodelay, [true]},
            {"name", [context]}
        ],
        Value <- Values
    ],
    ?assertError(function_clause, py_reactor_context:start_link([{name, context}])).

the_largest_options_that_are_taken_work(_Config) ->
    protocol(echo()),
    Options = #{max_connections => 1 bsl 20, linger_ms => ?NEVER_MS},
    {ok, Context} = py_reactor_context:start_link(Options),
    Client = connect(Context),
    echoes(Client, <<"huge">>),
    lost(Client),
    ok = py_reactor_context:stop(Context).

stats_count_bytes_and_callbacks(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Client = connect(Context),
    echoes(Client, rand:bytes(1000)),
    wait_until("what was sent is counted", fun() -> stat(Context, bytes_out) =:= 1000 end),
    ?assertMatch(
        #{
            accepted := 1, closed := 0, active := 1, refused := 0,
            bytes_in := 1000, bytes_out := 1000
        },
        py_reactor_context:stats(Context)
    ),
    lost(Client),
    wait_until("it is counted", fun() ->
        maps:with([accepted, closed, active], py_reactor_context:stats(Context)) =:=
            #{accepted => 1, closed => 1, active => 0}
    end),
    ok = py_reactor_context:stop(Context).

stop_tells_every_protocol_and_closes(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Clients = [connect(Context) || _ <- lists:seq(1, 50)],
    [echoes(Client, <<"hello">>) || Client <- Clients],
    wait_until("they are parked", fun() -> stat(Context, parked) =:= 50 end),
    [echoes(Client, <<"some are not">>) || Client <- lists:sublist(Clients, 20)],
    ok = py_reactor_context:stop(Context),
    [?assertEqual(<<>>, await_closed(Client)) || Client <- Clients],
    [{<<"stopped">>} = next(<<"lost">>) || _ <- Clients],
    nothing().

stop_sends_what_the_kernel_takes(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.write_buffer += b'goodbye'\n"
        "    return 'pause'\n"
    ),
    {ok, Context} = py_reactor_context:start_link(#{}),
    {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    ok = py_reactor_context:handoff(Context, Server, #{}),
    ok = py_reactor_context:stop(Context),
    ?assertEqual(<<"goodbye">>, await_closed(Client)),
    {<<"stopped">>} = next(<<"lost">>).

stop_interrupts_a_callback_that_does_not_return(_Config) ->
    protocol("def data_received(self, data):\n    tell('spinning')\n    while True:\n        pass\n"),
    {ok, Context} = py_reactor_context:start_link(#{}),
    [Spinning, Idle] = [connect(Context) || _ <- [1, 2]],
    ok = gen_tcp:send(Spinning, "x"),
    {<<"spinning">>} = next(),
    ok = py_reactor_context:stop(Context),
    ?assertEqual(
        [{<<"lost">>, <<"exception">>}, {<<"lost">>, <<"stopped">>}], lists:sort([next(), next()])
    ),
    [await_closed(Client) || Client <- [Spinning, Idle]],
    nothing().

the_death_of_the_starter_ends_its_context(_Config) ->
    protocol(echo()),
    Case = self(),
    {Starter, Monitor} = spawn_monitor(fun() ->
        {ok, Context} = py_reactor_context:start_link(#{}),
        Case ! {context, Context},
        receive
            stop -> exit(shutdown)
        end
    end),
    receive {context, Context} -> ok end,
    Client = connect(Context),
    Starter ! stop,
    receive {'DOWN', Monitor, process, Starter, shutdown} -> ok end,
    {<<"stopped">>} = next(<<"lost">>),
    ?assertEqual(<<>>, await_closed(Client)),
    wait_until("it is gone", fun() -> not is_process_alive(Context) end).

%%--------------------------------------------------------------------------------------------------
%% Death

a_killed_context_ends_its_own_connections_only(_Config) ->
    protocol(echo()),
    [Victim, Other] = pool(),
    Dying = [connect(Victim) || _ <- lists:seq(1, 20)],
    Staying = [connect(Other) || _ <- lists:seq(1, 20)],
    [echoes(Client, <<"hello">>) || Client <- Dying ++ Staying],
    exit(Victim, kill),
    [{<<"stopped">>} = next(<<"lost">>) || _ <- Dying],
    [?assertEqual(<<>>, await_closed(Client)) || Client <- Dying],
    [echoes(Client, <<"still here">>) || Client <- Staying],
    await_pool(2),
    ?assert(lists:member(Other, pool())),
    ?assertNot(lists:member(Victim, pool())),
    New = [connect() || _ <- lists:seq(1, 4)],
    [echoes(Client, <<"new">>) || Client <- New],
    [?assert(stat(Context, active) >= 2) || Context <- pool()],
    [lost(Client) || Client <- Staying ++ New].

a_killed_context_whose_callback_spins_is_ended_too(_Config) ->
    protocol("def data_received(self, data):\n    tell('spinning')\n    while True:\n        pass\n"),
    [Victim | _] = pool(),
    [Spinning, Idle] = [connect(Victim) || _ <- [1, 2]],
    ok = gen_tcp:send(Spinning, "x"),
    {<<"spinning">>} = next(),
    exit(Victim, kill),
    ?assertEqual(
        [{<<"lost">>, <<"exception">>}, {<<"lost">>, <<"stopped">>}], lists:sort([next(), next()])
    ),
    [await_closed(Client) || Client <- [Spinning, Idle]],
    await_pool(2).

a_callback_that_spins_is_ended_though_the_pool_dies_as_well(_Config) ->
    protocol("def data_received(self, data):\n    tell('spinning')\n    while True:\n        pass\n"),
    [Victim | _] = pool(),
    Spinning = connect(Victim),
    ok = gen_tcp:send(Spinning, "x"),
    {<<"spinning">>} = next(),
    exit(Victim, kill),
    wait_until("it is off the list", fun() -> not lists:member(Victim, pool()) end),
    exit(whereis(py_reactor_pool), kill),
    {<<"exception">>} = next(<<"lost">>),
    await_closed(Spinning),
    await_pool(2).

a_killed_pool_process_disturbs_nobody(_Config) ->
    protocol(echo()),
    Client = connect(),
    Pool = whereis(py_reactor_pool),
    exit(Pool, kill),
    wait_until("it is there again", fun() ->
        is_pid(whereis(py_reactor_pool)) andalso whereis(py_reactor_pool) =/= Pool
    end),
    echoes(Client, <<"still here">>),
    wait_until("handoffs work again", fun() ->
        {New, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
        case py_reactor_context:handoff(Server, #{}) of
            ok -> {_} = next(<<"made">>), echoes(New, <<"new">>), lost(New), true;
            {error, no_context} -> ok = gen_tcp:close(New), false
        end
    end),
    lost(Client).

the_application_stops_and_starts_ten_times(_Config) ->
    Life = fun() ->
        told:start(#{contexts => 2}),
        protocol(echo()),
        Clients = [connect() || _ <- lists:seq(1, 10)],
        [echoes(Client, rand:bytes(10_000)) || Client <- Clients],
        wait_until("they are parked", fun() ->
            lists:sum([stat(Context, parked) || Context <- pool()]) =:= 10
        end),
        [echoes(Client, <<"some are not">>) || Client <- lists:sublist(Clients, 5)],
        Running = running_counts(),
        ok = application:stop(py_reactor),
        [{<<"stopped">>} = next(<<"lost">>) || _ <- Clients],
        [?assertEqual(<<>>, await_closed(Client)) || Client <- Clients],
        Running
    end,
    Running = Life(),
    Stopped = stopped_counts(),
    [
        begin
            ?assertEqual(#{}, reactor_case:excess(Life(), Running)),
            wait_until("everything is back", fun() ->
                reactor_case:excess(stopped_counts(), Stopped) =:= #{}
            end)
        end
     || _ <- lists:seq(1, 9)
    ],
    told:start(#{contexts => 2}),
    ?assertEqual(0, eval("len(reactor._registry.protocols)")).

running_counts() ->
    maps:without([processes], reactor_case:counts()).

%% Without the protocols, which only a running Python can count.
stopped_counts() ->
    {ok, Descriptors} = file:list_dir("/proc/self/fd"),
    {ok, Threads} = file:list_dir("/proc/self/task"),
    #{
        descriptors => length(Descriptors),
        threads => length(Threads),
        ports => length(erlang:ports()),
        processes => length(processes())
    }.

%%--------------------------------------------------------------------------------------------------
%% Limits

a_full_context_answers_overload_until_a_place_is_free(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{max_connections => 3}),
    Clients = [First | Others] = [connect(Context) || _ <- [1, 2, 3]],
    [
        begin
            {Refused, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
            ?assertEqual({error, overload}, py_reactor_context:handoff(Context, Server, #{})),
            ?assertEqual(undefined, erlang:port_info(Server)),
            ?assertEqual(<<>>, await_closed(Refused))
        end
     || _ <- lists:seq(1, 10)
    ],
    ?assertMatch(#{active := 3, refused := 10}, py_reactor_context:stats(Context)),
    [echoes(Client, <<"served">>) || Client <- Clients],
    lost(First),
    wait_until("a place is free", fun() -> stat(Context, active) =:= 2 end),
    New = connect(Context),
    echoes(New, <<"given again">>),
    [lost(Client) || Client <- [New | Others]],
    ok = py_reactor_context:stop(Context).

places_are_given_again_for_ever(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{max_connections => 2}),
    [
        begin
            Client = connect(Context),
            echoes(Client, <<"one of many">>),
            lost(Client),
            wait_until("the place is free", fun() -> stat(Context, active) =:= 0 end)
        end
     || _ <- lists:seq(1, 100)
    ],
    ?assertMatch(#{accepted := 100, closed := 100, refused := 0}, py_reactor_context:stats(Context)),
    ok = py_reactor_context:stop(Context).

a_context_that_ended_takes_nothing_more(_Config) ->
    {ok, Context} = py_reactor_context:start_link(#{}),
    ok = py_reactor_context:stop(Context),
    {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    ?assertEqual({error, no_context}, py_reactor_context:handoff(Context, Server, #{})),
    ?assertEqual(undefined, erlang:port_info(Server)),
    ?assertEqual(<<>>, await_closed(Client)),
    ?assertEqual({error, no_context}, py_reactor_context:handoff(nobody, 0, #{})).

%%--------------------------------------------------------------------------------------------------
%% Callbacks that block

interrupt_ends_a_callback_that_spins(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    if data == b'spin':\n"
        "        tell('spinning')\n"
        "        while True:\n"
        "            pass\n"
        "    self.write_buffer += data\n"
    ),
    {ok, Context} = py_reactor_context:start_link(#{}),
    [Spinning, Other] = [connect(Context) || _ <- [1, 2]],
    ok = gen_tcp:send(Spinning, "spin"),
    {<<"spinning">>} = next(),
    ok = gen_tcp:send(Other, "wait"),
    ok = py_reactor_context:interrupt(Context),
    {<<"exception">>} = next(<<"lost">>),
    {ok, <<"wait">>} = gen_tcp:recv(Other, 4, ?PATIENCE_MS),
    await_closed(Spinning),
    echoes(Other, <<"on we go">>),
    lost(Other),
    ok = py_reactor_context:stop(Context).

interrupt_may_be_caught_by_the_callback(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    try:\n"
        "        tell('spinning')\n"
        "        while True:\n"
        "            pass\n"
        "    except erlang.Interrupted:\n"
        "        self.write_buffer += b'caught'\n"
    ),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Client = connect(Context),
    [
        begin
            ok = gen_tcp:send(Client, "x"),
            {<<"spinning">>} = next(),
            ok = py_reactor_context:interrupt(Context),
            {ok, <<"caught">>} = gen_tcp:recv(Client, 6, ?PATIENCE_MS)
        end
     || _ <- [1, 2, 3]
    ],
    lost(Client),
    ok = py_reactor_context:stop(Context).

interrupt_of_a_resting_context_hits_nobody(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Client = connect(Context),
    [
        begin
            ok = py_reactor_context:interrupt(Context),
            echoes(Client, <<"unharmed">>)
        end
     || _ <- lists:seq(1, 50)
    ],
    lost(Client),
    ok = py_reactor_context:stop(Context).

a_callback_that_waits_holds_up_its_own_context_only(_Config) ->
    blocks("tell('blocked')\n        go.wait()\n", "go.set()").

a_callback_that_spins_holds_up_its_own_context_only(_Config) ->
    blocks("tell('blocked')\n        while not go.is_set():\n            pass\n", "go.set()").

a_callback_in_a_system_call_holds_up_its_own_context_only(_Config) ->
    blocks("tell('blocked')\n        os.read(gate[0], 1)\n", "os.write(gate[1], b'x')").

blocks(Blocking, Release) ->
    exec("go = threading.Event()\ngate = os.pipe()"),
    protocol(
        ["def data_received(self, data):\n"
         "    if data == b'block':\n"
         "        ", Blocking,
         "    self.write_buffer += data\n"]
    ),
    [Held, Free] = pool(),
    [Blocked, Waiting] = [connect(Held) || _ <- [1, 2]],
    Client = connect(Free),
    ok = gen_tcp:send(Blocked, "block"),
    {<<"blocked">>} = next(),
    ok = gen_tcp:send(Waiting, "wait"),
    %% Another context, plain processes, calls into Python: all go on.
    [echoes(Client, rand:bytes(10_000)) || _ <- lists:seq(1, 20)],
    Pids = [spawn_monitor(fun() -> lists:sum(lists:seq(1, 100_000)) end) || _ <- lists:seq(1, 20)],
    [receive {'DOWN', Monitor, process, _, normal} -> ok end || {_, Monitor} <- Pids],
    ?assertEqual(2, eval("1 + 1")),
    wait_until("it counts as busy", fun() -> stat(Held, busy_ms) > 200 end),
    %% The pool gives new connections to the one that has time.
    New = [connect() || _ <- lists:seq(1, 10)],
    [echoes(C, <<"new">>) || C <- New],
    %% A handoff to the one that is held up answers, and is served in the end.
    {Late, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    ok = py_reactor_context:handoff(Held, Server, #{}),
    ?assertEqual({error, timeout}, gen_tcp:recv(Waiting, 0, 0)),
    _ = eval(Release),
    {ok, <<"wait">>} = gen_tcp:recv(Waiting, 4, ?PATIENCE_MS),
    {ok, <<"block">>} = gen_tcp:recv(Blocked, 5, ?PATIENCE_MS),
    {_} = next(<<"made">>),
    echoes(Late, <<"late">>),
    [lost(C) || C <- [Blocked, Waiting, Client, Late | New]],
    exec("[os.close(fd) for fd in gate]").

handoff_answers_while_all_contexts_are_held_up(_Config) ->
    exec("go = threading.Event()"),
    protocol("def data_received(self, data):\n    tell('blocked')\n    go.wait()\n"),
    Blocked = [connect(Context) || Context <- pool()],
    [ok = gen_tcp:send(Client, "x") || Client <- Blocked],
    [{<<"blocked">>} = next() || _ <- Blocked],
    Pairs = [told:stream([{ip, {127, 0, 0, 1}}], []) || _ <- lists:seq(1, 10)],
    [ok = py_reactor_context:handoff(Server, #{}) || {_, Server} <- Pairs],
    nothing_made(),
    none = eval("go.set()"),
    [{_} = next(<<"made">>) || _ <- Pairs],
    [lost(Client) || Client <- Blocked ++ [C || {C, _} <- Pairs]].

nothing_made() ->
    receive
        {<<"made">>, _} = Made -> error(Made)
    after 0 -> ok
    end.

a_flood_of_requests_costs_no_connection(_Config) ->
    exec("go = threading.Event()\ntheirs, ours = os.pipe()"),
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals().setdefault(client_info['name'], self)\n"
        "    super().connection_made(fd, client_info)\n"
        "def data_received(self, data):\n"
        "    if data == b'block':\n"
        "        tell('blocked')\n"
        "        go.wait()\n"
        "    self.write_buffer += data\n"
    ),
    {ok, Context} = py_reactor_context:start_link(#{max_connections => 3, linger_ms => 1}),
    Give = fun(Descriptor, Name) ->
        ok = py_reactor_context:handoff(Context, Descriptor, #{name => Name}),
        {_} = next(<<"made">>)
    end,
    {Blocked, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    Give(Server, blocked),
    {Parked, Server2} = told:stream([{ip, {127, 0, 0, 1}}], []),
    Give(Server2, parked),
    Give(eval("ours"), pipe),
    exec("os.close(ours)"),
    wait_until("all are parked", fun() -> stat(Context, parked) =:= 3 end),
    ok = gen_tcp:send(Blocked, "block"),
    {<<"blocked">>} = next(),
    %% As many as there is room for, and the report that a parked one is ready finds none.
    exec(
        "try:\n"
        "    for _ in range(100_000):\n"
        "        reactor.resume(blocked, 'continue')\n"
        "    assert False\n"
        "except RuntimeError:\n"
        "    pass"
    ),
    ok = gen_tcp:send(Parked, "ready"),
    wait_until("the context was told", fun() ->
        process_info(Context, message_queue_len) =:= {message_queue_len, 0} andalso
            process_info(Context, status) =:= {status, waiting}
    end),
    none = eval("go.set()"),
    {ok, <<"block">>} = gen_tcp:recv(Blocked, 5, ?PATIENCE_MS),
    {ok, <<"ready">>} = gen_tcp:recv(Parked, 5, ?PATIENCE_MS),
    nothing(),
    ?assertEqual(5, eval("pipe.write(b'still')")),
    exec("assert os.read(theirs, 100) == b'still'\nos.close(theirs)"),
    {<<"reset">>} = next(<<"lost">>),
    [lost(Client) || Client <- [Blocked, Parked]],
    ok = py_reactor_context:stop(Context).

the_pool_gives_each_context_its_turn(_Config) ->
    protocol(echo()),
    Before = [stat(Context, accepted) || Context <- pool()],
    Clients = [connect() || _ <- lists:seq(1, 20)],
    After = [stat(Context, accepted) || Context <- pool()],
    ?assertEqual([10, 10], lists:zipwith(fun(A, B) -> A - B end, After, Before)),
    [lost(Client) || Client <- Clients].

%%--------------------------------------------------------------------------------------------------
%% Parking

an_idle_connection_is_parked_and_wakes(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{linger_ms => 1}),
    Client = connect(Context),
    [
        begin
            wait_until("it is parked", fun() -> stat(Context, parked) =:= 1 end),
            echoes(Client, rand:bytes(Size))
        end
     || Size <- [1, 100_000, 10]
    ],
    ?assert(stat(Context, parkings) >= 3),
    ?assert(stat(Context, wakes) >= 3),
    lost(Client),
    wait_until("it is counted out", fun() -> stat(Context, parked) =:= 0 end),
    ok = py_reactor_context:stop(Context).

with_linger_0_every_silence_is_parked(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{linger_ms => 0}),
    Client = connect(Context),
    wait_until("it is parked", fun() -> stat(Context, parked) =:= 1 end),
    [echoes(Client, <<"parked each time">>) || _ <- lists:seq(1, 100)],
    ?assert(stat(Context, parkings) >= 100),
    lost(Client),
    ok = py_reactor_context:stop(Context).

with_a_huge_linger_nothing_is_parked(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{linger_ms => ?NEVER_MS}),
    {ok, Other} = py_reactor_context:start_link(#{linger_ms => 1}),
    [Client, Witness] = [connect(C) || C <- [Context, Other]],
    echoes(Client, <<"hello">>),
    echoes(Witness, <<"hello">>),
    wait_until("another one is parked", fun() -> stat(Other, parked) =:= 1 end),
    ?assertEqual(0, stat(Context, parkings)),
    [lost(C) || C <- [Client, Witness]],
    [ok = py_reactor_context:stop(C) || C <- [Context, Other]].

a_thousand_idle_connections_are_parked_and_echo(_Config) ->
    protocol("def connection_made(self, fd, client_info):\n    pass\n" ++ echo()),
    {ok, Context} = py_reactor_context:start_link(#{linger_ms => 5}),
    Listener = reactor_case:listen(),
    Clients = [reactor_case:open(Listener, #{}, Context) || _ <- lists:seq(1, 1000)],
    ok = gen_tcp:close(Listener),
    AllParked = fun() -> stat(Context, parked) =:= 1000 end,
    wait_until("all are parked", AllParked),
    [echoes(Client, <<"hello">>) || Client <- Clients],
    wait_until("all are parked again", AllParked),
    [ok = gen_tcp:send(Client, <<"all at once">>) || Client <- Clients],
    [{ok, <<"all at once">>} = gen_tcp:recv(Client, 11, ?PATIENCE_MS) || Client <- Clients],
    wait_until("all are parked once more", AllParked),
    [ok = gen_tcp:close(Client) || Client <- Clients],
    Ends = lists:sort([next() || _ <- lists:seq(1, 2000)]),
    ?assertEqual(
        lists:duplicate(1000, {<<"eof">>}) ++ lists:duplicate(1000, {<<"lost">>, <<"eof">>}), Ends
    ),
    wait_until("all are counted out", fun() ->
        maps:with([parked, active], py_reactor_context:stats(Context)) =:=
            #{parked => 0, active => 0}
    end),
    ok = py_reactor_context:stop(Context).

a_parked_connection_hears_of_its_peers_end(_Config) ->
    protocol(echo()),
    {ok, Context} = py_reactor_context:start_link(#{linger_ms => 1}),
    [
        begin
            Client = connect(Context),
            wait_until("it is parked", fun() -> stat(Context, parked) =:= 1 end),
            End(Client)
        end
     || End <- [
            fun(Client) -> lost(Client) end,
            fun(Client) -> reset(Client), {<<"reset">>} = next(<<"lost">>) end,
            fun(Client) ->
                ok = gen_tcp:shutdown(Client, write),
                ?assertEqual(<<>>, await_closed(Client)),
                {} = next(<<"eof">>),
                {<<"eof">>} = next(<<"lost">>)
            end
        ]
    ],
    nothing(),
    ok = py_reactor_context:stop(Context).

a_parked_connection_can_be_written_to_and_resumed(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    super().connection_made(fd, client_info)\n"
    ),
    {ok, Context} = py_reactor_context:start_link(#{linger_ms => 1}),
    Client = connect(Context),
    Parked = fun() -> stat(Context, parked) =:= 1 end,
    wait_until("it is parked", Parked),
    ?assertEqual(6, eval("it.write(b'direct')")),
    {ok, <<"direct">>} = gen_tcp:recv(Client, 6, ?PATIENCE_MS),
    wait_until("it is parked", Parked),
    exec("it.write_buffer.extend(bytes(5_000_000))"),
    ?assert(eval("reactor.resume(it, 'write_pending')")),
    {ok, Zeros} = gen_tcp:recv(Client, 5_000_000, ?PATIENCE_MS),
    ?assertEqual(5_000_000, byte_size(Zeros)),
    wait_until("it is parked", Parked),
    ok = gen_tcp:send(Client, "heard"),
    {<<"heard">>} = next(<<"data">>),
    wait_until("it is parked", Parked),
    ?assert(eval("reactor.resume(it, 'close')")),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"closed">>} = next(<<"lost">>),
    ok = py_reactor_context:stop(Context).

a_blocked_writer_is_parked_until_there_is_room(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    self.write_buffer += bytes(20_000_000)\n"
    ),
    {ok, Context} = py_reactor_context:start_link(#{linger_ms => 1}),
    [
        begin
            Client = connect(Context),
            wait_until("it is parked", fun() -> stat(Context, parked) =:= 1 end),
            End(Client)
        end
     || End <- [
            fun(Client) ->
                {ok, Zeros} = gen_tcp:recv(Client, 20_000_000, ?PATIENCE_MS),
                ?assertEqual(20_000_000, byte_size(Zeros)),
                lost(Client)
            end,
            fun(Client) -> reset(Client), {<<"reset">>} = next(<<"lost">>) end
        ]
    ],
    nothing(),
    ok = py_reactor_context:stop(Context).

%%--------------------------------------------------------------------------------------------------
%% Forks

a_child_that_returns_from_a_callback_serves_nobody(_Config) ->
    [
        begin
            protocol(
                ["def data_received(self, data):\n"
                 "    if data == b'fork':\n"
                 "        child = os.fork()\n"
                 "        if child == 0:\n"
                 "            ", Child, "\n"
                 "        tell('child', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
                 "    self.write_buffer += data\n"]
            ),
            {ok, Context} = py_reactor_context:start_link(#{}),
            [Client, Other] = [connect(Context) || _ <- [1, 2]],
            ok = gen_tcp:send(Client, "fork"),
            ?assertEqual({<<"child">>, ExitCode}, next()),
            {ok, <<"fork">>} = gen_tcp:recv(Client, 4, ?PATIENCE_MS),
            [echoes(C, rand:bytes(10_000)) || C <- [Client, Other], _ <- lists:seq(1, 10)],
            [lost(C) || C <- [Client, Other]],
            ok = py_reactor_context:stop(Context)
        end
     || {Child, ExitCode} <- [
            {"os._exit(3)", 3},
            {"return 'read_pending'", 0},
            {"return 'close'", 0},
            {"raise ValueError('in the child')", 0}
        ]
    ].

%%--------------------------------------------------------------------------------------------------

echo() ->
    "def data_received(self, data):\n    self.write_buffer += data\n".

%% A client of the default pool, or of one context.
connect() ->
    connect(fun(Server) -> py_reactor_context:handoff(Server, #{}) end).

connect(Handoff) when is_function(Handoff) ->
    {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    ok = Handoff(Server),
    receive
        {<<"made">>, _} -> Client
    after ?PATIENCE_MS -> error(not_made)
    end;
connect(Context) ->
    connect(fun(Server) -> py_reactor_context:handoff(Context, Server, #{}) end).

echo_nothing(Client) ->
    ok = gen_tcp:send(Client, "x"),
    {<<"x">>} = next(<<"data">>).

%% Closes the client of a protocol that closes at the end of the stream.
lost(Client) ->
    ok = gen_tcp:close(Client),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

pool() ->
    Children = supervisor:which_children(py_reactor_context_sup),
    [Pid || {_, Pid, _, _} <- lists:sort(Children), is_pid(Pid)].

await_pool(Size) ->
    wait_until("the pool is complete", fun() ->
        length([Pid || Pid <- pool(), is_map(py_reactor_context:stats(Pid))]) =:= Size
    end).

stat(Context, Key) ->
    maps:get(Key, py_reactor_context:stats(Context)).

%%% Kills, floods and sabotage while connections live: what is left over, and who is told.
-module(chaos_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [
    use/1, exec/1, eval/1, open/1, open/3, connect/1, accept/1, echoes/2, await_closed/1,
    await_ledger/1, ledger/0, wait_until/2, wait_until/3
]).

%% Contexts killed in a case: more than any ten in a second.
-define(KILLS, 40).

suite() ->
    [{timetrap, {seconds, 60}}].

all() ->
    [{group, lingering}, {group, parked_at_once}].

groups() ->
    told:groups(cases()).

cases() ->
    [
        %% Kills and floods
        contexts_killed_again_and_again_come_back,
        kills_and_calls_under_load_leave_nothing_behind,
        restarts_under_load_leave_nothing_behind,
        handoff_to_a_context_that_ends_meanwhile_is_closed,
        stop_answers_what_waits_behind_code_that_cannot_be_interrupted,
        %% The mailbox of a context
        readiness_of_no_known_kind_is_ignored,
        junk_in_the_mailbox_does_not_matter,
        normal_exit_of_another_process_is_ignored,
        context_without_a_worker_ends,
        suspended_context_catches_up,
        %% Descriptors
        handoff_without_a_free_descriptor_closes_and_says_so,
        context_without_a_free_descriptor_comes_back_later,
        closed_poller_ends_its_context_and_tells_every_protocol,
        %% Python modules
        module_loaded_again_sets_the_factory_of_those_that_run,
        module_imported_again_sets_the_factory_of_those_that_run,
        %% Native functions
        what_is_no_argument_is_badarg
    ].

init_per_group(Group, Config) ->
    ok = reactor_case:start(#{contexts => 2, linger_ms => told:linger_ms(Group)}),
    ok = py:exec("import resource, importlib, os, sys"),
    start_courier(),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

%% The thread that sends in place of a scheduler is made when it is first needed, and stays.
start_courier() ->
    {ok, Context} = py_reactor_context:start_link(#{}),
    {ok, Handle} = py_reactor_pool:find(Context),
    ok = py_reactor_context:stop(Context),
    Listener = reactor_case:listen(),
    Client = connect(Listener),
    Socket = accept(Listener),
    {ok, Fd} = inet:getfd(Socket),
    {ok, Ticket} = py_nif:handoff(Handle, Fd, #{}, true),
    receive
        {Ticket, Answer} -> ?assertEqual({error, no_context}, Answer)
    end,
    [ok = gen_tcp:close(Port) || Port <- [Client, Socket, Listener]].

%% Not the frame of `reactor_case': its bystander would lose its connection with the first context
%% that is killed.
init_per_testcase(_Case, Config) ->
    process_flag(trap_exit, true),
    reactor_case:exec("reactor_case.ledger.forget()"),
    use("reactor_case.Echo"),
    [{counts, settled(reactor_case:counts())}, {listener, reactor_case:listen()} | Config].

%% The counts once they stay the same: Common Test has processes that come and go.
settled(Before) ->
    timer:sleep(20),
    case reactor_case:counts() of
        Before -> Before;
        Other -> settled(Other)
    end.

end_per_testcase(_Case, Config) ->
    try
        ok = gen_tcp:close(?config(listener, Config)),
        [ok = gen_tcp:close(Port) || Port <- erlang:ports(), erlang:port_info(Port, name) =:= {name, "tcp_inet"}],
        wait_until("every protocol is lost once", fun() ->
            #{<<"made">> := Made, <<"lost_once">> := LostOnce} = ledger(),
            Made - LostOnce
        end, 0),
        reactor_case:await_counts(?config(counts, Config)),
        ?assertEqual({messages, []}, process_info(self(), messages))
    of
        ok -> ok
    catch
        Class:Reason:Stack -> {fail, {Class, Reason, Stack}}
    end.

%%--------------------------------------------------------------------------------------------------
%% Kills and floods

contexts_killed_again_and_again_come_back(Config) ->
    Listener = ?config(listener, Config),
    [
        begin
            Client = open(Listener),
            ok = echoes(Client, <<"alive">>),
            kill_a_context(),
            await_contexts(2),
            ok = gen_tcp:close(Client)
        end
     || _ <- lists:seq(1, ?KILLS)
    ],
    Client = open(Listener),
    ok = echoes(Client, <<"still alive">>).

kills_and_calls_under_load_leave_nothing_behind(Config) ->
    Load =
        [start_load(fun() -> visit(?config(listener, Config)) end) || _ <- lists:seq(1, 6)] ++
            [start_load(fun call/0) || _ <- lists:seq(1, 2)] ++
            [start_load(fun() -> exec("import gc; gc.collect()") end)],
    [
        begin
            kill_a_context(),
            timer:sleep(rand:uniform(30))
        end
     || _ <- lists:seq(1, ?KILLS)
    ],
    lists:foreach(fun stop_load/1, Load),
    await_contexts(2).

restarts_under_load_leave_nothing_behind(Config) ->
    Load = [start_load(fun() -> visit(?config(listener, Config)) end) || _ <- lists:seq(1, 6)],
    [
        begin
            ok = application:stop(py_reactor),
            {ok, _} = application:ensure_all_started(py_reactor),
            timer:sleep(rand:uniform(20))
        end
     || _ <- lists:seq(1, 10)
    ],
    lists:foreach(fun stop_load/1, Load).

handoff_to_a_context_that_ends_meanwhile_is_closed(Config) ->
    Listener = ?config(listener, Config),
    {ok, Context} = py_reactor_context:start_link(#{}),
    {ok, Handle} = py_reactor_pool:find(Context),
    exec("r, w = os.pipe()"),
    use("type('Held', (reactor_case.Echo,), {'data_received': lambda self, data: bool(os.read(r, 1)) and None})"),
    Holder = open(Listener, #{}, Context),
    ok = gen_tcp:send(Holder, <<"hold">>),
    wait_until("the worker is held up", fun() -> py_nif:context_busy_ms(Handle) > 100 end),
    Waiting = open(Listener, #{}, Context),
    exit(Context, kill),
    receive
        {'EXIT', Context, killed} -> ok
    end,
    exec("os.write(w, b'.')"),
    %% The handle, which is still held here, keeps nothing open.
    <<>> = await_closed(Holder),
    <<>> = await_closed(Waiting),
    wait_until("the worker has ended", fun() -> py_nif:context_running(Handle) end, false),
    exec("os.close(r), os.close(w)").

stop_answers_what_waits_behind_code_that_cannot_be_interrupted(_Config) ->
    exec("r, w = os.pipe()\nimport erlang\ndef hold(to):\n    erlang.send(to, 'held')\n    os.read(r, 1)"),
    Held = [py_nif:submit({call, <<"__main__">>, <<"hold">>, [self()], #{}}) || _ <- lists:seq(1, 4)],
    [receive <<"held">> -> ok end || _ <- Held],
    {ok, Waiting} = py_nif:submit({eval, <<"1 + 1">>, #{}}),
    ok = application:stop(py_reactor),
    receive
        {Waiting, Answer} -> ?assertEqual({error, stopped}, Answer)
    after 20000 -> error(never_answered)
    end,
    {ok, _} = application:ensure_all_started(py_reactor),
    exec("os.write(w, b'....')"),
    [
        receive
            {Ticket, {error, {Class, _, _}}} -> ?assertEqual(<<"erlang.Interrupted">>, Class)
        end
     || {ok, Ticket} <- Held
    ],
    exec("os.close(r), os.close(w)").

%% One connection from its beginning to its end; what it echoes is right or cut off.
visit(Listener) ->
    Client = connect(Listener),
    {ok, Socket} = gen_tcp:accept(Listener),
    _ = py_reactor_context:handoff(Socket, #{}),
    Sent = rand:bytes(rand:uniform(20000)),
    _ = gen_tcp:send(Client, Sent),
    case gen_tcp:recv(Client, byte_size(Sent), 30000) of
        {ok, Echo} -> ?assert(Echo =:= Sent);
        {error, closed} -> ok;
        {error, econnreset} -> ok
    end,
    [inet:setopts(Client, [{linger, {true, 0}}]) || rand:uniform(2) =:= 1],
    gen_tcp:close(Client).

call() ->
    Answer = py:eval("[None for _ in range(n)]", #{n => rand:uniform(30000)}, rand:uniform(3) - 1),
    ?assert(element(1, Answer) =:= ok orelse Answer =:= {error, timeout}).

%% Does something again and again.
start_load(Do) ->
    spawn_link(fun() -> repeat(Do) end).

%% A message that nobody took would be seen here as well.
repeat(Do) ->
    Do(),
    receive
        stop -> ok;
        Left -> error({left_in_the_mailbox, Left})
    after 0 -> repeat(Do)
    end.

stop_load(Pid) ->
    Pid ! stop,
    receive
        {'EXIT', Pid, Reason} -> ?assertEqual(normal, Reason)
    after 40000 -> error(load_hangs)
    end.

kill_a_context() ->
    case py_reactor_pool:contexts() of
        [] -> ok;
        Contexts -> exit(lists:nth(rand:uniform(length(Contexts)), Contexts), kill)
    end.

await_contexts(Number) ->
    wait_until(
        "the contexts are there",
        fun() -> length([C || C <- py_reactor_pool:contexts(), is_process_alive(C)]) end,
        Number
    ).

%%--------------------------------------------------------------------------------------------------
%% The mailbox of a context

readiness_of_no_known_kind_is_ignored(Config) ->
    with_own_context(Config, fun(Context, Client) ->
        Context ! {select, make_ref(), undefined, ready_input},
        Context ! {select, not_a_connection, undefined, ready_output},
        Context ! {select, make_ref(), undefined, ready_for_anything},
        ok = echoes(Client, <<"none of that was mine">>)
    end).

junk_in_the_mailbox_does_not_matter(Config) ->
    with_own_context(Config, fun(Context, Client) ->
        [Context ! {junk, N} || N <- lists:seq(1, 5000)],
        ok = echoes(Client, <<"later">>),
        ok = echoes(Client, <<"and again">>)
    end).

normal_exit_of_another_process_is_ignored(Config) ->
    with_own_context(Config, fun(Context, Client) ->
        Linked = spawn(fun() -> link(Context) end),
        wait_until("it has ended", fun() -> not is_process_alive(Linked) end),
        true = spawn(fun() -> exit(Context, normal) end) =/= self(),
        ok = echoes(Client, <<"not my parent">>)
    end).

context_without_a_worker_ends(_Config) ->
    {ok, Context} = py_reactor_context:start_link(#{}),
    {ok, Handle} = py_reactor_pool:find(Context),
    ok = py_nif:context_stop(Handle),
    receive
        {'EXIT', Context, Reason} -> ?assertEqual({worker, stopped}, Reason)
    end.

suspended_context_catches_up(Config) ->
    with_own_context(Config, fun(Context, Client) ->
        wait_until("it is parked", fun() -> parked(Context) end, 1),
        ok = sys:suspend(Context),
        {status, Context, _, _} = sys:get_status(Context),
        ok = gen_tcp:send(Client, <<"wake up">>),
        ok = sys:resume(Context),
        {ok, <<"wake up">>} = gen_tcp:recv(Client, 7, 30000)
    end).

with_own_context(Config, Do) ->
    {ok, Context} = py_reactor_context:start_link(#{}),
    Client = open(?config(listener, Config), #{}, Context),
    ok = echoes(Client, <<"hello">>),
    Do(Context, Client),
    ok = py_reactor_context:stop(Context),
    receive
        {'EXIT', Context, Reason} -> ?assertEqual(normal, Reason)
    end.

parked(Context) ->
    maps:get(parked, py_reactor_context:stats(Context)).

%%--------------------------------------------------------------------------------------------------
%% Descriptors

handoff_without_a_free_descriptor_closes_and_says_so(Config) ->
    Client = connect(?config(listener, Config)),
    Socket = accept(?config(listener, Config)),
    Answer = without_free_descriptors(fun() -> py_reactor_context:handoff(Socket, #{}) end),
    ?assertEqual({error, {system, <<"Too many open files">>}}, Answer),
    <<>> = await_closed(Client).

context_without_a_free_descriptor_comes_back_later(_Config) ->
    Supervisor = whereis(py_reactor_context_sup),
    without_free_descriptors(fun() ->
        [exit(Context, kill) || Context <- py_reactor_pool:contexts()],
        %% Time is the subject: it is tried again and again, but not without end at once.
        timer:sleep(1000)
    end),
    await_contexts(2),
    ?assertEqual(Supervisor, whereis(py_reactor_context_sup)).

without_free_descriptors(Do) ->
    exec(
        "limits = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4, limits[1]))"
    ),
    try
        Do()
    after
        ok = py:exec("resource.setrlimit(resource.RLIMIT_NOFILE, limits)")
    end.

closed_poller_ends_its_context_and_tells_every_protocol(Config) ->
    Before = numbers_of("eventpoll"),
    {ok, Context} = py_reactor_context:start_link(#{}),
    [Poller] = numbers_of("eventpoll") -- Before,
    Listener = ?config(listener, Config),
    Clients = [open(Listener, #{}, Context) || _ <- lists:seq(1, 5)],
    [ok = echoes(Client, <<"hello">>) || Client <- Clients],
    %% The number goes to another file: were it free, anybody's next descriptor would get it.
    exec(["null = os.open(os.devnull, os.O_RDWR)\nos.dup2(null, ", Poller, ")\nos.close(null)"]),
    _ = gen_tcp:send(hd(Clients), <<"wake up">>),
    receive
        {'EXIT', Context, Reason} ->
            ?assertMatch({worker, <<"the poller failed: ", _/binary>>}, Reason)
    end,
    lists:foreach(fun reactor_case:await_closed/1, Clients),
    await_ledger(5).

numbers_of(Kind) ->
    {ok, Numbers} = file:list_dir("/proc/self/fd"),
    Wanted = {ok, "anon_inode:[" ++ Kind ++ "]"},
    [Number || Number <- Numbers, file:read_link("/proc/self/fd/" ++ Number) =:= Wanted].

%%--------------------------------------------------------------------------------------------------
%% Python modules

module_loaded_again_sets_the_factory_of_those_that_run(Config) ->
    factory_of_another_module(Config, "again = importlib.reload(reactor)").

module_imported_again_sets_the_factory_of_those_that_run(Config) ->
    factory_of_another_module(
        Config, "del sys.modules['erlang.reactor']\nagain = importlib.import_module('erlang.reactor')"
    ).

factory_of_another_module(Config, Import) ->
    Before = open(?config(listener, Config)),
    ok = echoes(Before, <<"before">>),
    exec([
        Import,
        "\nclass Loud(again.Protocol):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data.upper()\n"
        "again.set_protocol_factory(Loud)"
    ]),
    After = open(?config(listener, Config)),
    ok = gen_tcp:send(After, <<"after">>),
    ?assertEqual({ok, <<"AFTER">>}, gen_tcp:recv(After, 5, 30000)),
    ok = echoes(Before, <<"still the old one">>),
    ?assertEqual(true, eval("all(again.get_protocol(p.fd) is p for p in again._registry.protocols.values())")),
    ?assertEqual(2, eval("len(again._registry.protocols)")).

%%--------------------------------------------------------------------------------------------------
%% Native functions

what_is_no_argument_is_badarg(_Config) ->
    Terms = [
        nothing, 'ж', 1.5, -1 bsl 100, 1 bsl 100, <<1:3>>, [a | b], {}, {exec}, {call, 1, 2}, #{[] => {}},
        self(), make_ref(), fun() -> ok end, hd(erlang:ports()), atomics:new(1, [])
    ],
    Wrong = [
        {F, Term, Result}
     || {F, Arity} <- py_nif:module_info(exports),
        F =/= module_info,
        Arity > 0,
        Term <- Terms,
        Result <- [catch_error(F, lists:duplicate(Arity, Term))],
        Result =/= badarg
    ],
    ?assertEqual([], Wrong).

catch_error(Function, Arguments) ->
    try apply(py_nif, Function, Arguments) of
        Answer -> {returned, Answer}
    catch
        error:Reason -> Reason
    end.

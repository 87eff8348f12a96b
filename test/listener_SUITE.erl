%%% Listeners: their options, their life, what they survive and what they leave behind.
-module(listener_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_closed/1, echoes/2, wait_until/2, wait_until/3]).
-import(told, [exec/1, eval/1, eval/2, next/0, next/1, nothing/0]).

-define(PATIENCE_MS, 20000).
-define(LOOPBACK, {127, 0, 0, 1}).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, one_context}, {group, two_contexts}].

%% With one context its worker accepts by itself while clients come; among several, acceptors choose.
groups() ->
    Cases = told:cases(?MODULE),
    [
        {one_context, [], Cases -- [a_context_of_the_pool_comes_back_and_serves]},
        {two_contexts, [], Cases}
    ].

init_per_group(Group, Config) ->
    Contexts = map_get(Group, #{one_context => 1, two_contexts => 2}),
    told:start(#{contexts => Contexts}),
    %% The thread that sends in place of a scheduler starts when it is needed first, for good.
    {ok, _} = py_reactor:start_listener(first, #{ip => loopback}),
    ok = py_reactor:wait_for_connections(first, '==', 0),
    ok = py_reactor:stop_listener(first),
    [{contexts, Contexts} | Config].

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(_Case, Config) ->
    Begun = told:begin_case(Config),
    Folder = eval("tempfile.mkdtemp(prefix='listener')"),
    exec(helpers()),
    [{folder, binary_to_list(Folder)} | Begun].

end_per_testcase(_Case, Config) ->
    Left = py_reactor:which_listeners(),
    _ = [py_reactor:stop_listener(Name) || Name <- Left],
    _ = file:del_dir_r(?config(folder, Config)),
    case {told:end_case(Config), ?config(tc_status, Config)} of
        {ok, ok} when Left =/= [] -> {fail, {left, Left}};
        {Other, _} -> Other
    end.

helpers() ->
    <<
        "go = threading.Event()\n"
        "class Blocks(Told):\n"
        "    def data_received(self, data):\n"
        "        tell('blocked')\n"
        "        go.wait()\n"
        "class Echo(Told):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data\n"
        "\n"
        "class Quiet(reactor.Protocol):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data\n"
    >>.

%%--------------------------------------------------------------------------------------------------
%% Protocols

a_listener_serves_with_its_own_protocol(_Config) ->
    {ok, Pid} = start(own, #{protocol => {'__main__', 'Echo'}}),
    ?assert(is_process_alive(Pid)),
    Client = connect(own),
    {#{<<"type">> := <<"tcp">>, <<"addr">> := <<"127.0.0.1">>, <<"port">> := Port}} = next(<<"made">>),
    ?assertEqual({ok, Port}, inet:port(Client)),
    echoes(Client, rand:bytes(100_000)),
    lost(Client),
    ok = py_reactor:stop_listener(own).

two_listeners_do_not_know_of_each_other(_Config) ->
    exec(
        "class Upper(reactor.Protocol):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data.upper()\n"
        "class Lower(reactor.Protocol):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data.lower()\n"
    ),
    {ok, _} = start(upper, #{protocol => {"__main__", "Upper"}}),
    {ok, _} = start(lower, #{protocol => {<<"__main__">>, <<"Lower">>}}),
    Clients = [{Name, connect(Name)} || _ <- lists:seq(1, 10), Name <- [upper, lower]],
    [ok = gen_tcp:send(Client, "Hello") || {_, Client} <- Clients],
    Heard = #{upper => <<"HELLO">>, lower => <<"hello">>},
    [
        ?assertEqual({ok, map_get(Name, Heard)}, gen_tcp:recv(Client, 5, ?PATIENCE_MS))
     || {Name, Client} <- Clients
    ],
    [?assertMatch(#{active := 10, accepted := 10}, info(Name)) || Name <- [upper, lower]],
    ok = py_reactor:stop_listener(upper),
    [?assertEqual(<<>>, await_closed(Client)) || {upper, Client} <- Clients],
    [echoes(Client, <<"still here">>) || {lower, Client} <- Clients],
    ok = py_reactor:stop_listener(lower),
    [?assertEqual(<<>>, await_closed(Client)) || {lower, Client} <- Clients].

without_a_protocol_the_factory_of_all_is_used(_Config) ->
    told:protocol("def data_received(self, data):\n    self.write_buffer += b'factory'\n"),
    {ok, _} = start(plain, #{}),
    Client = connect(plain),
    {_} = next(<<"made">>),
    ok = gen_tcp:send(Client, "x"),
    {ok, <<"factory">>} = gen_tcp:recv(Client, 7, ?PATIENCE_MS),
    ?assertMatch(#{protocol := undefined}, info(plain)),
    lost(Client),
    ok = py_reactor:stop_listener(plain).

keyword_arguments_reach_every_protocol(_Config) ->
    exec(
        "class Named(Told):\n"
        "    def __init__(self, name, numbers):\n"
        "        tell('named', name, numbers)\n"
    ),
    Kwargs = #{name => <<"Ada">>, <<"numbers">> => [1, 2]},
    {ok, _} = start(kwargs, #{protocol => {'__main__', 'Named', Kwargs}}),
    [
        begin
            Client = connect(kwargs),
            ?assertEqual({<<"Ada">>, [1, 2]}, next(<<"named">>)),
            {_} = next(<<"made">>),
            lost(Client)
        end
     || _ <- [1, 2]
    ],
    ok = py_reactor:stop_listener(kwargs).

info_is_merged_into_client_info(_Config) ->
    Info = #{listener => <<"web">>, <<"depth">> => [1, {2, #{}}]},
    {ok, _} = start(informed, #{protocol => {'__main__', 'Echo'}, info => Info}),
    Client = connect(informed),
    {Made} = next(<<"made">>),
    ?assertMatch(#{<<"listener">> := <<"web">>, <<"depth">> := [1, {2, #{}}], <<"port">> := _}, Made),
    lost(Client),
    ok = py_reactor:stop_listener(informed).

a_protocol_that_fails_is_told_with_its_traceback(Config) ->
    ok = file:write_file(filename:join(?config(folder, Config), "broken_at_import.py"), "1 / 0\n"),
    ok = py:add_path(?config(folder, Config)),
    exec("number = 42\nclass Other:\n    pass\n"),
    Before = descriptors(),
    [
        begin
            {error, {protocol, Traceback}} = start(broken, #{protocol => Protocol}),
            ?assertNotEqual(nomatch, string:find(Traceback, Word), Traceback)
        end
     || {Protocol, Word} <- [
            {{no_such_module, 'Echo'}, "ModuleNotFoundError"},
            {{broken_at_import, 'Echo'}, "ZeroDivisionError"},
            {{'__main__', 'NoSuchClass'}, "AttributeError"},
            {{'__main__', number}, "TypeError"},
            {{'__main__', 'Other'}, "TypeError"},
            {{'__main__', 'Echo', #{key => 1, <<"key">> => 2}}, "key"}
        ]
    ],
    exec(["import sys; sys.path.remove('", ?config(folder, Config), "')"]),
    ?assertEqual([], py_reactor:which_listeners()),
    wait_until("nothing was opened", fun() -> descriptors() =< Before end).

a_context_that_starts_later_imports_by_itself(_Config) ->
    {ok, First} = py_reactor_context:start_link(#{}),
    Contexts = [First, later_context],
    {ok, _} = start(later, #{protocol => {'__main__', 'Echo'}, contexts => Contexts}),
    {ok, Second} = py_reactor_context:start_link(#{name => later_context}),
    Clients = [connect(later) || _ <- [1, 2]],
    [{_} = next(<<"made">>) || _ <- Clients],
    [echoes(Client, <<"served">>) || Client <- Clients],
    ?assertMatch(#{active := 1}, py_reactor_context:stats(Second)),
    [lost(Client) || Client <- Clients],
    ok = py_reactor:stop_listener(later),
    [ok = py_reactor_context:stop(Context) || Context <- [First, Second]].

a_held_up_context_does_not_hold_up_a_start(_Config) ->
    [Held, Free] = [element(2, py_reactor_context:start_link(#{})) || _ <- [1, 2]],
    {ok, _} = start(holding, #{protocol => {'__main__', 'Blocks'}, contexts => [Held]}),
    Blocked = blocked(holding),
    wait_until("it is held up", fun() -> maps:get(busy_ms, py_reactor_context:stats(Held)) > 100 end),
    {ok, _} = start(free, #{protocol => {'__main__', 'Echo'}, contexts => [Held, Free]}),
    Clients = [connect(free) || _ <- lists:seq(1, 5)],
    [{_} = next(<<"made">>) || _ <- Clients],
    [echoes(Client, <<"served">>) || Client <- Clients],
    ?assertMatch(#{active := 5}, py_reactor_context:stats(Free)),
    none = eval("go.set()"),
    [lost(Client) || Client <- [Blocked | Clients]],
    [ok = py_reactor:stop_listener(Name) || Name <- [holding, free]],
    [ok = py_reactor_context:stop(Context) || Context <- [Held, Free]].

%% A worker accepts by itself while clients come; one that a callback holds up does not.
the_socket_is_taken_back_from_a_held_up_worker(_Config) ->
    {ok, _} = start(holding, #{protocol => {'__main__', 'Blocks'}}),
    Blocked = blocked(holding),
    Later = taken_in_meanwhile(holding),
    [lost(Client) || Client <- [Blocked, Later]],
    ok = py_reactor:stop_listener(holding).

%% Time is the subject: the next look at the jobs is an hour away.
the_socket_is_taken_back_in_time_however_long_callbacks_may_take(_Config) ->
    ok = py_nif:watch_jobs(3_600_000),
    {ok, _} = start(holding, #{protocol => {'__main__', 'Blocks'}}),
    Earlier = connect(holding),
    {_} = next(<<"made">>),
    timer:sleep(1000),
    Blocked = blocked(holding),
    Later = taken_in_meanwhile(holding),
    [lost(Client) || Client <- [Earlier, Blocked, Later]],
    ok = py_reactor:stop_listener(holding),
    %% It begins anew with the settings.
    Watchdog = whereis(py_reactor_watchdog),
    exit(Watchdog, kill),
    wait_until("there is another watchdog", fun() ->
        is_pid(whereis(py_reactor_watchdog)) andalso whereis(py_reactor_watchdog) =/= Watchdog
    end).

%% A client whose callback holds the worker up until `go'.
blocked(Name) ->
    Client = connect(Name),
    {_} = next(<<"made">>),
    ok = gen_tcp:send(Client, "x"),
    {<<"blocked">>} = next(),
    Client.

%% A client that somebody else than the worker accepted; then the worker may go on.
taken_in_meanwhile(Name) ->
    Client = connect(Name),
    wait_until("it waits for the worker", fun() -> maps:get(queue_depth, info(Name)) > 0 end),
    none = eval("go.set()"),
    {_} = next(<<"made">>),
    Client.

a_start_does_not_wait_for_a_callback_of_the_only_context(_Config) ->
    {ok, Held} = py_reactor_context:start_link(#{}),
    {ok, _} = start(holding, #{protocol => {'__main__', 'Blocks'}, contexts => [Held]}),
    Blocked = blocked(holding),
    %% The callback ends only when these have come back.
    {error, {protocol, _}} = start(bad, #{protocol => {no_such_module, 'Echo'}, contexts => [Held]}),
    {error, {protocol, _}} = start(bad, #{protocol => {'__main__', go}, contexts => [Held]}),
    {ok, _} = start(waiting, #{protocol => {'__main__', 'Echo'}, contexts => [Held]}),
    %% What each start asked of the context waits there.
    ?assert(map_get(queue_depth, py_reactor_context:stats(Held)) >= 3),
    ?assert(map_get(queue_depth, py_reactor:listener_info(waiting)) >= 3),
    Client = connect(waiting),
    none = eval("go.set()"),
    {_} = next(<<"made">>),
    echoes(Client, <<"served in the end">>),
    [lost(Each) || Each <- [Blocked, Client]],
    [ok = py_reactor:stop_listener(Name) || Name <- [holding, waiting]],
    ok = py_reactor_context:stop(Held).

%%--------------------------------------------------------------------------------------------------
%% Names, options, errors

bad_options_are_answered_with_their_key(_Config) ->
    [
        ?assertEqual({error, {bad_option, Key}}, start(bad, #{Key => Value}), {Key, Value})
     || {Key, Values} <- [
            {ip, [here, {1, 2, 3}, {1, 2, 3, 256}, "127.0.0.1", {local, ""}, {local, 1}]},
            {local, ["", 1, [a | b]]},
            {port, [-1, 65536, 1.0, "80"]},
            {backlog, [0, -1, many]},
            {reuseport, [yes, 1]},
            {num_acceptors, [0, -1, 1025, all]},
            {max_connections, [-1, 1.0, many]},
            {protocol, ['Echo', {'__main__'}, {1, 'Echo'}, {'__main__', ""}, {m, c, []}, {m, c, #{1 => 2}}]},
            {contexts, [[], none, [1], [undefined], [self() | self()]]},
            {nodelay, [1, undefined]},
            {idle_timeout, [0, -1, 1.5, never, 1 bsl 40]},
            {handshake_timeout, [0, soon]},
            {write_timeout, [0, undefined]},
            {high_water, [0, -1, 1.0, infinity]},
            {low_water, [-1, 1.0, infinity]},
            {slow_consumer, [drop, {buffer, 0}, {buffer, many}, buffer]},
            {info, [[], #{1 => 2}, #{key => binary:copy(<<"x">>, 70000)}]},
            {shutdown, [-1, kill, 1.0]},
            {colour, [blue]},
            {"port", [80]}
        ],
        Value <- Values
    ],
    [
        ?assertEqual({error, {bad_option, Key}}, start(bad, Options), Options)
     || {Key, Options} <- [
            {low_water, #{low_water => 10, high_water => 10}},
            {local, #{ip => loopback, local => "path"}},
            {port, #{local => "path", port => 80}},
            {info, #{info => #{key => fun() -> ok end}}},
            {protocol, #{protocol => {m, c, #{key => self}, more}}},
            {protocol, #{protocol => {'__main__', 'Echo', #{key => fun() -> ok end}}}}
        ]
    ],
    ?assertError(badarg, py_reactor:start_listener(bad, [{port, 0}])),
    ?assertEqual([], py_reactor:which_listeners()).

options_at_their_bounds_are_taken(_Config) ->
    Most = 16#7fffffff,
    [
        begin
            {ok, _} = start(bounds, Options),
            Client = connect(bounds),
            echoes(Client, <<"hello">>),
            ok = gen_tcp:close(Client),
            ok = py_reactor:stop_listener(bounds)
        end
     || Given <- [
            #{backlog => 1, num_acceptors => 1, max_connections => 1, high_water => 1},
            #{backlog => Most, num_acceptors => 1024, max_connections => Most},
            #{high_water => Most, low_water => Most - 1, slow_consumer => {buffer, Most}},
            #{idle_timeout => 16#ffffffff, write_timeout => infinity, shutdown => infinity}
        ],
        Options <- [Given#{protocol => {'__main__', 'Quiet'}}]
    ].

a_name_is_any_term_but_only_once(_Config) ->
    Names = [name, <<"name">>, "name", {my, 1, #{}}, 1, 1.0],
    Pids = [element(2, {ok, _} = start(Name, #{})) || Name <- Names],
    %% 1 and 1.0 are two names.
    ?assertEqual([], Names -- py_reactor:which_listeners()),
    [
        ?assertEqual({error, {already_started, Pid}}, start(Name, #{}))
     || {Name, Pid} <- lists:zip(Names, Pids)
    ],
    [ok = py_reactor:stop_listener(Name) || Name <- Names],
    ?assertEqual([], py_reactor:which_listeners()),
    ?assertNot(lists:any(fun is_process_alive/1, Pids)).

of_many_that_start_one_name_one_succeeds(_Config) ->
    Case = self(),
    Starters = [spawn_link(fun() -> Case ! {self(), start(race, #{})} end) || _ <- lists:seq(1, 20)],
    Answers = [receive {Starter, Answer} -> Answer end || Starter <- Starters],
    [{ok, Pid}] = [Answer || {ok, _} = Answer <- Answers],
    ?assertEqual(
        lists:duplicate(19, {error, {already_started, Pid}}), Answers -- [{ok, Pid}]
    ),
    ok = py_reactor:stop_listener(race).

an_unknown_name_is_not_found(_Config) ->
    [
        ?assertEqual({error, not_found}, Answer)
     || Answer <- [
            py_reactor:stop_listener(nobody),
            py_reactor:suspend_listener(nobody),
            py_reactor:resume_listener(nobody),
            py_reactor:drain_listener(nobody, 10),
            py_reactor:listener_info(nobody),
            py_reactor:get_port(nobody),
            py_reactor:set_max_connections(nobody, 1),
            py_reactor:wait_for_connections(nobody, '==', 0)
        ]
    ].

bad_arguments_are_badarg(_Config) ->
    {ok, _} = start(args, #{}),
    [
        ?assertError(badarg, Call())
     || Call <- [
            fun() -> py_reactor:drain_listener(args, -1) end,
            fun() -> py_reactor:drain_listener(args, soon) end,
            fun() -> py_reactor:set_max_connections(args, -1) end,
            fun() -> py_reactor:set_max_connections(args, many) end,
            fun() -> py_reactor:wait_for_connections(args, '=/=', 1) end,
            fun() -> py_reactor:wait_for_connections(args, '<', 0) end,
            fun() -> py_reactor:wait_for_connections(args, '==', many) end
        ]
    ],
    ok = py_reactor:stop_listener(args).

what_the_kernel_refuses_is_answered(Config) ->
    {ok, _} = start(taken, #{}),
    Port = py_reactor:get_port(taken),
    Folder = ?config(folder, Config),
    [
        ?assertEqual({error, Reason}, start(refused, Options), Options)
     || {Reason, Options} <- [
            {eaddrinuse, #{port => Port}},
            {eaddrnotavail, #{ip => {192, 0, 2, 1}}},
            {enoent, #{ip => {local, filename:join([Folder, "no", "such"])}}},
            {enametoolong, #{ip => {local, lists:duplicate(200, $x)}}}
        ]
    ],
    ?assertEqual([taken], py_reactor:which_listeners()),
    ok = py_reactor:stop_listener(taken).

without_a_context_there_is_no_listener(_Config) ->
    [
        ?assertEqual({error, no_context}, start(alone, Options#{contexts => [no_such_context]}))
     || Options <- [#{}, #{protocol => {'__main__', 'Echo'}}]
    ],
    ?assertEqual([], py_reactor:which_listeners()).

%%--------------------------------------------------------------------------------------------------
%% Sockets

ipv6_is_served_like_ipv4(_Config) ->
    Ip = {0, 0, 0, 0, 0, 0, 0, 1},
    {ok, _} = start(six, #{ip => Ip, protocol => {'__main__', 'Echo'}}),
    {ok, Client} = gen_tcp:connect(Ip, py_reactor:get_port(six), [inet6, binary, {active, false}]),
    {#{<<"addr">> := <<"::1">>}} = next(<<"made">>),
    echoes(Client, <<"six">>),
    ?assertMatch(#{ip := Ip}, info(six)),
    lost(Client),
    ok = py_reactor:stop_listener(six).

any_ipv6_address_takes_ipv4_too(_Config) ->
    {ok, _} = start(dual, #{ip => {0, 0, 0, 0, 0, 0, 0, 0}, protocol => {'__main__', 'Quiet'}}),
    Client = connect(dual),
    echoes(Client, <<"four">>),
    ok = gen_tcp:close(Client),
    ok = py_reactor:stop_listener(dual).

a_unix_socket_comes_and_goes_with_its_listener(Config) ->
    Path = filename:join(?config(folder, Config), "socket"),
    [
        begin
            {ok, _} = py_reactor:start_listener(unix, Where#{protocol => {'__main__', 'Echo'}}),
            ?assertEqual(undefined, py_reactor:get_port(unix)),
            ?assertEqual(list_to_binary(Path), maps:get(local, info(unix))),
            ?assertNot(maps:is_key(port, info(unix))),
            Client = connect_local(Path),
            {#{<<"type">> := <<"unix">>}} = next(<<"made">>),
            echoes(Client, <<"local">>),
            ok = py_reactor:suspend_listener(unix),
            ?assertNot(filelib:is_file(Path)),
            {error, enoent} = gen_tcp:connect({local, Path}, 0, []),
            ok = py_reactor:resume_listener(unix),
            lost(Client),
            Another = connect_local(Path),
            {_} = next(<<"made">>),
            lost(Another),
            ok = py_reactor:stop_listener(unix),
            ?assertEqual({error, enoent}, file:read_link_info(Path))
        end
     || Where <- [#{ip => {local, Path}}, #{local => list_to_binary(Path)}]
    ].

an_abandoned_unix_socket_is_replaced_and_a_living_one_is_not(Config) ->
    Path = filename:join(?config(folder, Config), "socket"),
    Where = #{ip => {local, Path}, protocol => {'__main__', 'Quiet'}},
    {ok, Listener} = gen_tcp:listen(0, [{ip, {local, Path}}]),
    ?assertEqual({error, eaddrinuse}, py_reactor:start_listener(unix, Where)),
    %% OTP leaves the file.
    ok = gen_tcp:close(Listener),
    {ok, _} = file:read_link_info(Path),
    {ok, _} = py_reactor:start_listener(unix, Where),
    ?assertEqual({error, eaddrinuse}, py_reactor:start_listener(other, Where)),
    Client = connect_local(Path),
    echoes(Client, <<"ours now">>),
    ok = gen_tcp:close(Client),
    ok = py_reactor:stop_listener(unix),
    ok = file:write_file(Path, "precious"),
    ?assertEqual({error, eaddrinuse}, py_reactor:start_listener(unix, Where)),
    ?assertEqual({ok, <<"precious">>}, file:read_file(Path)).

an_abstract_unix_socket_is_no_file(_Config) ->
    Name = <<0, "listener_SUITE", (list_to_binary(os:getpid()))/binary>>,
    {ok, _} = py_reactor:start_listener(unix, #{local => Name, protocol => {'__main__', 'Quiet'}}),
    ?assertMatch(#{local := Name}, info(unix)),
    Client = connect_local(Name),
    echoes(Client, <<"abstract">>),
    ok = gen_tcp:close(Client),
    ok = py_reactor:stop_listener(unix).

nodelay_is_set_unless_it_is_not_wished(_Config) ->
    exec(
        "class Asks(reactor.Protocol):\n"
        "    def connection_made(self, fd, client_info):\n"
        "        with socket.socket(fileno=os.dup(fd)) as dup:\n"
        "            tell('nodelay', dup.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)\n"
    ),
    [
        begin
            {ok, _} = start(nodelay, Options#{protocol => {'__main__', 'Asks'}}),
            Client = connect(nodelay),
            ?assertEqual({Expected}, next(<<"nodelay">>)),
            ok = gen_tcp:close(Client),
            ok = py_reactor:stop_listener(nodelay)
        end
     || {Options, Expected} <- [{#{}, true}, {#{nodelay => true}, true}, {#{nodelay => false}, false}]
    ].

with_reuseport_two_listeners_share_a_port(_Config) ->
    {ok, _} = start(one, #{reuseport => true, protocol => {'__main__', 'Quiet'}}),
    Port = py_reactor:get_port(one),
    ?assertEqual({error, eaddrinuse}, start(other, #{port => Port})),
    {ok, _} = start(other, #{reuseport => true, port => Port, protocol => {'__main__', 'Quiet'}}),
    Clients = [connect(one) || _ <- lists:seq(1, 50)],
    [echoes(Client, <<"one of them">>) || Client <- Clients],
    [#{active := N}, #{active := M}] = [info(Name) || Name <- [one, other]],
    ?assertEqual(50, N + M),
    [ok = gen_tcp:close(Client) || Client <- Clients],
    [ok = py_reactor:stop_listener(Name) || Name <- [one, other]].

the_backlog_is_as_long_as_was_wished(_Config) ->
    {ok, _} = start(backlog, #{backlog => 1, protocol => {'__main__', 'Quiet'}}),
    [Acceptor] = acceptors(backlog),
    ok = sys:suspend(Acceptor),
    %% Linux lets one more in.
    Waiting = [connect(backlog) || _ <- [1, 2]],
    Port = py_reactor:get_port(backlog),
    ?assertEqual({error, timeout}, gen_tcp:connect(?LOOPBACK, Port, [], 300)),
    ok = sys:resume(Acceptor),
    [echoes(Client, <<"waited">>) || Client <- Waiting],
    [ok = gen_tcp:close(Client) || Client <- Waiting],
    ok = py_reactor:stop_listener(backlog).

there_are_as_many_acceptors_as_wished(_Config) ->
    {ok, _} = start(many, #{num_acceptors => 5, protocol => {'__main__', 'Quiet'}}),
    ?assertEqual(5, length(acceptors(many))),
    Clients = [connect(many) || _ <- lists:seq(1, 100)],
    [echoes(Client, <<"served">>) || Client <- Clients],
    %% Each of them alone suffices.
    [ok = sys:suspend(Acceptor) || Acceptor <- tl(acceptors(many))],
    More = [connect(many) || _ <- lists:seq(1, 10)],
    [echoes(Client, <<"served">>) || Client <- More],
    [ok = sys:resume(Acceptor) || Acceptor <- tl(acceptors(many))],
    [ok = gen_tcp:close(Client) || Client <- Clients ++ More],
    ok = py_reactor:wait_for_connections(many, '==', 0),
    ok = py_reactor:stop_listener(many).

only_the_chosen_contexts_serve(_Config) ->
    {ok, ByPid} = py_reactor_context:start_link(#{}),
    {ok, ByName} = py_reactor_context:start_link(#{name => chosen}),
    {ok, Other} = py_reactor_context:start_link(#{}),
    {ok, _} = start(choosy, #{contexts => [ByPid, chosen], protocol => {'__main__', 'Quiet'}}),
    ?assertEqual(lists:sort([ByPid, ByName]), lists:sort(maps:get(contexts, info(choosy)))),
    Clients = [connect(choosy) || _ <- lists:seq(1, 10)],
    [echoes(Client, <<"served">>) || Client <- Clients],
    ?assertEqual(
        [5, 5, 0], [maps:get(active, py_reactor_context:stats(C)) || C <- [ByPid, ByName, Other]]
    ),
    [ok = gen_tcp:close(Client) || Client <- Clients],
    ok = py_reactor:stop_listener(choosy),
    [ok = py_reactor_context:stop(Context) || Context <- [ByPid, ByName, Other]].

a_full_context_gets_no_more_while_another_has_room(_Config) ->
    {ok, Small} = py_reactor_context:start_link(#{max_connections => 1}),
    {ok, Large} = py_reactor_context:start_link(#{}),
    {ok, _} = start(sizes, #{contexts => [Small, Large], protocol => {'__main__', 'Quiet'}}),
    Clients = [connect(sizes) || _ <- lists:seq(1, 10)],
    [echoes(Client, <<"served">>) || Client <- Clients],
    ?assertEqual([1, 9], [maps:get(active, py_reactor_context:stats(C)) || C <- [Small, Large]]),
    ?assertMatch(#{refused := 0}, info(sizes)),
    [ok = gen_tcp:close(Client) || Client <- Clients],
    ok = py_reactor:stop_listener(sizes),
    [ok = py_reactor_context:stop(Context) || Context <- [Small, Large]].

while_all_contexts_are_full_clients_wait(_Config) ->
    {ok, Small} = py_reactor_context:start_link(#{max_connections => 2}),
    {ok, _} = start(narrow, #{contexts => [Small], protocol => {'__main__', 'Quiet'}}),
    [One, Two, Three] = [connect(narrow) || _ <- [1, 2, 3]],
    ok = gen_tcp:send(Three, "waits"),
    [echoes(Client, <<"served">>) || Client <- [One, Two]],
    #{reason := overload} = reactor_case:await_logged(#{what => accepting_paused, listener => narrow}),
    ?assertMatch(#{active := 2, refused := 0}, info(narrow)),
    ok = gen_tcp:close(One),
    ?assertEqual({ok, <<"waits">>}, gen_tcp:recv(Three, 5, ?PATIENCE_MS)),
    [ok = gen_tcp:close(Client) || Client <- [Two, Three]],
    ok = py_reactor:stop_listener(narrow),
    ok = py_reactor_context:stop(Small).

limits_reach_the_connections(_Config) ->
    exec(
        "class Waits(Told):\n"
        "    def connection_made(self, fd, client_info):\n"
        "        tell('made', {})\n"
        "        return 'continue'\n"
        "class Floods(Told):\n"
        "    def connection_made(self, fd, client_info):\n"
        "        tell('made', {})\n"
        "        self.write_buffer += bytes(20_000_000)\n"
    ),
    [
        begin
            {ok, _} = start(limits, #{protocol => {'__main__', Class}, Key => 100}),
            Client = connect(limits),
            {_} = next(<<"made">>),
            ?assertEqual({atom_to_binary(Key)}, next(<<"lost">>)),
            ok = py_reactor:wait_for_connections(limits, '==', 0),
            ?assertMatch(#{closed_by := #{Key := 1}, Key := 100}, info(limits)),
            ok = gen_tcp:close(Client),
            ok = py_reactor:stop_listener(limits)
        end
     || {Class, Key} <- [
            {'Echo', idle_timeout}, {'Waits', handshake_timeout}, {'Floods', write_timeout}
        ]
    ].

the_high_water_mark_bounds_what_is_held(_Config) ->
    exec(
        "class Triples(reactor.Protocol):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data * 3\n"
        "        tell('held', len(self.write_buffer))\n"
    ),
    Options = #{high_water => 1000, low_water => 10, protocol => {'__main__', 'Triples'}},
    {ok, _} = start(water, Options),
    Client = connect(water, [{sndbuf, 10_000_000}]),
    ok = gen_tcp:send(Client, binary:copy(<<"x">>, 5_000_000)),
    %% Nobody takes what comes back: it stops reading long before it has read all. That nothing
    %% happens takes time to see.
    wait_until("it reads no more", fun() ->
        #{bytes_in := Before} = info(water),
        timer:sleep(50),
        #{bytes_in := After} = info(water),
        Before > 0 andalso Before =:= After
    end),
    #{bytes_in := Read} = info(water),
    ?assert(Read < 5_000_000),
    {ok, All} = gen_tcp:recv(Client, 15_000_000, ?PATIENCE_MS),
    ?assertEqual(15_000_000, byte_size(All)),
    ?assert(lists:max(drop_told([])) =< 1000 + 3 * 122880),
    ok = gen_tcp:close(Client),
    ok = py_reactor:stop_listener(water).

%%--------------------------------------------------------------------------------------------------
%% max_connections

there_are_never_more_connections_than_may_be(_Config) ->
    {ok, _} = start(limited, #{
        max_connections => 5, num_acceptors => 3, protocol => {'__main__', 'Echo'}
    }),
    Clients = [connect(limited) || _ <- lists:seq(1, 40)],
    [ok = gen_tcp:send(Client, "hello") || Client <- Clients],
    ok = py_reactor:wait_for_connections(limited, '==', 5),
    serve_all(Clients),
    ok = py_reactor:wait_for_connections(limited, '==', 0),
    ?assertMatch(#{accepted := 40, refused := 0, max_connections := 5}, info(limited)),
    %% By what the protocols told: how many there were at most.
    ?assertEqual(5, most_at_once(0, 0)),
    ok = py_reactor:stop_listener(limited).

%% Clients that wait are served as those that are served close.
serve_all([]) ->
    ok;
serve_all(Clients) ->
    Answered = [Client || Client <- Clients, gen_tcp:recv(Client, 5, 10) =:= {ok, <<"hello">>}],
    #{active := Active} = info(limited),
    ?assert(Active =< 5),
    [ok = gen_tcp:close(Client) || Client <- Answered],
    serve_all(Clients -- Answered).

most_at_once(Open, Most) ->
    receive
        {<<"made">>, _} -> most_at_once(Open + 1, max(Open + 1, Most));
        {<<"lost">>, _} -> most_at_once(Open - 1, Most);
        {<<"eof">>} -> most_at_once(Open, Most)
    after 0 ->
        ?assertEqual(0, Open),
        Most
    end.

a_raised_limit_lets_waiting_clients_in(_Config) ->
    {ok, _} = start(raised, #{max_connections => 0, protocol => {'__main__', 'Quiet'}}),
    Clients = [connect(raised) || _ <- lists:seq(1, 10)],
    [ok = gen_tcp:send(Client, "hello") || Client <- Clients],
    ?assertMatch(#{active := 0, max_connections := 0}, info(raised)),
    ok = py_reactor:set_max_connections(raised, 4),
    ok = py_reactor:wait_for_connections(raised, '==', 4),
    ok = py_reactor:set_max_connections(raised, infinity),
    [{ok, <<"hello">>} = gen_tcp:recv(Client, 5, ?PATIENCE_MS) || Client <- Clients],
    ?assertMatch(#{active := 10, max_connections := infinity}, info(raised)),
    %% Less than there are: they live on.
    ok = py_reactor:set_max_connections(raised, 3),
    Waiting = connect(raised),
    ok = gen_tcp:send(Waiting, "hello"),
    [echoes(Client, <<"still here">>) || Client <- Clients],
    ?assertMatch(#{active := 10}, info(raised)),
    {Some, Others} = lists:split(8, Clients),
    [ok = gen_tcp:close(Client) || Client <- Some],
    {ok, <<"hello">>} = gen_tcp:recv(Waiting, 5, ?PATIENCE_MS),
    [ok = gen_tcp:close(Client) || Client <- [Waiting | Others]],
    ok = py_reactor:stop_listener(raised).

at_the_limit_nobody_is_busy_with_those_who_wait(_Config) ->
    {ok, Context} = py_reactor_context:start_link(#{}),
    [
        begin
            {ok, _} = start(resting, #{
                max_connections => 1, contexts => Contexts, protocol => {'__main__', 'Quiet'}
            }),
            First = connect(resting),
            echoes(First, <<"first">>),
            Waiting = connect(resting),
            ok = gen_tcp:send(Waiting, "waits"),
            [Acceptor] = acceptors(resting),
            %% That nothing happens takes time to see.
            wait_until("the acceptor rests", fun() ->
                {reductions, Before} = process_info(Acceptor, reductions),
                timer:sleep(50),
                {reductions, After} = process_info(Acceptor, reductions),
                Before =:= After
            end),
            ok = gen_tcp:close(First),
            {ok, <<"waits">>} = gen_tcp:recv(Waiting, 5, ?PATIENCE_MS),
            ok = gen_tcp:close(Waiting),
            ok = py_reactor:stop_listener(resting)
        end
     || Contexts <- [all, [Context]]
    ],
    ok = py_reactor_context:stop(Context).

one_waits_for_any_number_of_connections(_Config) ->
    {ok, _} = start(counted, #{protocol => {'__main__', 'Quiet'}}),
    [
        ?assertEqual(ok, py_reactor:wait_for_connections(counted, Comparison, N))
     || {Comparison, N} <- [{'==', 0}, {'>=', 0}, {'=<', 0}, {'<', 1}]
    ],
    Case = self(),
    Waiting = [
        spawn_link(fun() ->
            Case ! {self(), py_reactor:wait_for_connections(counted, Comparison, N)}
        end)
     || {Comparison, N} <- [{'>', 1}, {'>=', 2}, {'==', 2}]
    ],
    One = connect(counted),
    ok = py_reactor:wait_for_connections(counted, '==', 1),
    receive
        {_, ok} -> error(too_early)
    after 0 -> ok
    end,
    Two = connect(counted),
    [receive {Waiter, Answer} -> ?assertEqual(ok, Answer) end || Waiter <- Waiting],
    Last = [
        spawn_link(fun() ->
            Case ! {self(), py_reactor:wait_for_connections(counted, Comparison, N)}
        end)
     || {Comparison, N} <- [{'<', 2}, {'=<', 1}]
    ],
    ok = gen_tcp:close(One),
    [receive {Waiter, Answer} -> ?assertEqual(ok, Answer) end || Waiter <- Last],
    ok = gen_tcp:close(Two),
    ok = py_reactor:wait_for_connections(counted, '==', 0),
    Never = spawn_link(fun() ->
        Case ! {self(), py_reactor:wait_for_connections(counted, '>', 1000)}
    end),
    wait_until("it waits", fun() -> process_info(Never, status) =:= {status, waiting} end),
    ok = py_reactor:stop_listener(counted),
    receive
        {Never, Answer} -> ?assertEqual({error, not_found}, Answer)
    end.

%%--------------------------------------------------------------------------------------------------
%% Suspend, resume, drain, stop

a_suspended_listener_refuses_and_goes_on_serving(_Config) ->
    {ok, _} = start(paused, #{protocol => {'__main__', 'Quiet'}}),
    Port = py_reactor:get_port(paused),
    Old = connect(paused),
    echoes(Old, <<"before">>),
    [
        begin
            ok = py_reactor:suspend_listener(paused),
            ok = py_reactor:suspend_listener(paused),
            ?assertMatch(#{status := suspended, port := Port, active := 1}, info(paused)),
            ?assertEqual({error, econnrefused}, gen_tcp:connect(?LOOPBACK, Port, [])),
            echoes(Old, <<"meanwhile">>),
            ok = py_reactor:resume_listener(paused),
            ok = py_reactor:resume_listener(paused),
            ?assertMatch(#{status := running, port := Port}, info(paused)),
            New = connect(paused),
            echoes(New, <<"after">>),
            ok = gen_tcp:close(New),
            ok = py_reactor:wait_for_connections(paused, '==', 1)
        end
     || _ <- lists:seq(1, 20)
    ],
    ok = gen_tcp:close(Old),
    ok = py_reactor:stop_listener(paused).

suspend_takes_what_waits_in_the_backlog(_Config) ->
    {ok, _} = start(waited, #{protocol => {'__main__', 'Quiet'}}),
    [Acceptor] = acceptors(waited),
    ok = sys:suspend(Acceptor),
    Clients = [connect(waited) || _ <- lists:seq(1, 200)],
    ok = py_reactor:suspend_listener(waited),
    ?assertMatch(#{active := 200}, info(waited)),
    [echoes(Client, <<"served">>) || Client <- Clients],
    ok = sys:resume(Acceptor),
    ok = py_reactor:resume_listener(waited),
    New = connect(waited),
    echoes(New, <<"served">>),
    [ok = gen_tcp:close(Client) || Client <- [New | Clients]],
    ok = py_reactor:stop_listener(waited).

a_port_that_was_taken_meanwhile_is_not_resumed(_Config) ->
    {ok, _} = start(robbed, #{protocol => {'__main__', 'Quiet'}}),
    Port = py_reactor:get_port(robbed),
    ok = py_reactor:suspend_listener(robbed),
    {ok, Thief} = gen_tcp:listen(Port, [{ip, ?LOOPBACK}, {reuseaddr, true}]),
    ?assertEqual({error, eaddrinuse}, py_reactor:resume_listener(robbed)),
    ?assertMatch(#{status := suspended}, info(robbed)),
    ok = gen_tcp:close(Thief),
    ok = py_reactor:resume_listener(robbed),
    Client = connect(robbed),
    echoes(Client, <<"again">>),
    ok = gen_tcp:close(Client),
    ok = py_reactor:stop_listener(robbed).

a_drain_ends_idle_connections(_Config) ->
    {ok, _} = start(drained, #{protocol => {'__main__', 'Quiet'}}),
    Port = py_reactor:get_port(drained),
    Clients = [connect(drained) || _ <- lists:seq(1, 50)],
    [echoes(Client, <<"keep me">>) || Client <- Clients],
    ?assertEqual({ok, 0}, py_reactor:drain_listener(drained, infinity)),
    [?assertEqual(<<>>, await_closed(Client)) || Client <- Clients],
    ?assertEqual({error, econnrefused}, gen_tcp:connect(?LOOPBACK, Port, [])),
    ?assertMatch(#{status := suspended, active := 0, closed := 50}, info(drained)),
    %% As if nothing had been.
    ok = py_reactor:resume_listener(drained),
    New = connect(drained),
    echoes(New, <<"new">>),
    ?assertMatch(#{status := running, active := 1}, info(drained)),
    ok = gen_tcp:close(New),
    ok = py_reactor:stop_listener(drained).

a_drain_tells_how_many_were_left(_Config) ->
    exec(
        "class Stays(Told):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data\n"
        "    def draining(self):\n"
        "        tell('draining')\n"
        "        return 'continue'\n"
    ),
    {ok, _} = start(stubborn, #{protocol => {'__main__', 'Stays'}}),
    Clients = [connect(stubborn) || _ <- [1, 2, 3]],
    [{_} = next(<<"made">>) || _ <- Clients],
    Case = self(),
    %% The second one is in more of a hurry.
    Drains = [
        spawn_link(fun() -> Case ! {self(), py_reactor:drain_listener(stubborn, infinity)} end)
    ],
    [{<<"draining">>} = next() || _ <- Clients],
    ?assertMatch(#{status := draining, active := 3}, info(stubborn)),
    ?assertEqual({error, draining}, py_reactor:suspend_listener(stubborn)),
    ?assertEqual({error, draining}, py_reactor:resume_listener(stubborn)),
    [echoes(Client, <<"in flight">>) || Client <- Clients],
    lost(hd(Clients)),
    ?assertEqual({ok, 2}, py_reactor:drain_listener(stubborn, 50)),
    [receive {Drain, Answer} -> ?assertEqual({ok, 2}, Answer) end || Drain <- Drains],
    [?assertEqual({<<"stopped">>}, next(<<"lost">>)) || _ <- tl(Clients)],
    [?assertEqual(<<>>, await_closed(Client)) || Client <- tl(Clients)],
    wait_until("it is over", fun() -> maps:get(status, info(stubborn)) =:= suspended end),
    ok = py_reactor:resume_listener(stubborn),
    ok = py_reactor:stop_listener(stubborn).

a_drain_of_a_suspended_listener_works(_Config) ->
    {ok, _} = start(both, #{protocol => {'__main__', 'Quiet'}}),
    Client = connect(both),
    echoes(Client, <<"hello">>),
    ok = py_reactor:suspend_listener(both),
    ?assertEqual({ok, 0}, py_reactor:drain_listener(both, infinity)),
    ?assertEqual({ok, 0}, py_reactor:drain_listener(both, 0)),
    ?assertEqual(<<>>, await_closed(Client)),
    ok = py_reactor:stop_listener(both).

stop_gives_connections_the_time_of_shutdown(_Config) ->
    exec(
        "class Finishes(Told):\n"
        "    def data_received(self, data):\n"
        "        globals()['it'] = self\n"
        "        tell('data', data)\n"
        "        return 'pause'\n"
        "    def draining(self):\n"
        "        tell('draining')\n"
        "        return 'pause'\n"
    ),
    {ok, _} = start(patient, #{protocol => {'__main__', 'Finishes'}, shutdown => infinity}),
    Client = connect(patient),
    {_} = next(<<"made">>),
    ok = gen_tcp:send(Client, "x"),
    {<<"x">>} = next(<<"data">>),
    Case = self(),
    Stopper = spawn_link(fun() -> Case ! {self(), py_reactor:stop_listener(patient)} end),
    %% A paused one hears of it, too.
    {<<"draining">>} = next(),
    exec("it.write_buffer += b'finished'\nreactor.resume(it, 'close')"),
    ?assertEqual(<<"finished">>, await_closed(Client)),
    receive
        {Stopper, Answer} -> ?assertEqual(ok, Answer)
    end,
    {<<"closed">>} = next(<<"lost">>).

stop_closes_what_is_left(_Config) ->
    exec(
        "class Stays(Told):\n"
        "    def draining(self):\n"
        "        return 'continue'\n"
    ),
    [
        begin
            {ok, _} = start(stopped, #{protocol => {'__main__', 'Stays'}, shutdown => Shutdown}),
            Clients = [connect(stopped) || _ <- lists:seq(1, 10)],
            [{_} = next(<<"made">>) || _ <- Clients],
            ok = py_reactor:stop_listener(stopped),
            [?assertEqual({<<"stopped">>}, next(<<"lost">>)) || _ <- Clients],
            [?assertEqual(<<>>, await_closed(Client)) || Client <- Clients]
        end
     || Shutdown <- [brutal_kill, 0, 50]
    ].

a_thousand_starts_and_stops_on_one_port_leave_nothing(_Config) ->
    {ok, _} = start(again, #{}),
    Port = py_reactor:get_port(again),
    ok = py_reactor:stop_listener(again),
    [
        begin
            {ok, _} = start(again, #{port => Port, protocol => {'__main__', 'Quiet'}}),
            %% Connections of the one before are in TIME_WAIT, on our side.
            Client = connect(again),
            echoes(Client, <<"hello">>),
            ok = py_reactor:stop_listener(again),
            ?assertEqual(<<>>, await_closed(Client))
        end
     || _ <- lists:seq(1, 1000)
    ],
    ?assertEqual([], py_reactor:which_listeners()).

info_tells_all_there_is(Config) ->
    Options = #{
        backlog => 10, reuseport => true, num_acceptors => 2, max_connections => 7, nodelay => false,
        idle_timeout => 1000, handshake_timeout => 2000, write_timeout => 3000,
        high_water => 500, low_water => 100, slow_consumer => drop_new,
        info => #{key => value}, shutdown => 10, protocol => {'__main__', 'Quiet', #{}}
    },
    {ok, Pid} = start(told, Options),
    Info = info(told),
    ?assertEqual(Options, maps:with(maps:keys(Options), Info)),
    ?assertMatch(#{name := told, pid := Pid, status := running, ip := ?LOOPBACK}, Info),
    ?assertEqual(py_reactor:get_port(told), maps:get(port, Info)),
    ?assertEqual(?config(contexts, Config), length(maps:get(contexts, Info))),
    Client = connect(told),
    echoes(Client, <<"hello">>),
    wait_until("what was sent is counted", fun() -> maps:get(bytes_out, info(told)) =:= 5 end),
    ?assertMatch(
        #{
            accepted := 1, active := 1, closed := 0, refused := 0, bytes_in := 5, bytes_out := 5,
            callbacks := 2, exceptions := 0, timeouts := 0, drops := 0, closed_by := #{eof := 0},
            longest_callback_us := _, queue_depth := _
        },
        info(told)
    ),
    ok = gen_tcp:close(Client),
    ok = py_reactor:wait_for_connections(told, '==', 0),
    ?assertMatch(#{active := 0, closed := 1, closed_by := #{eof := 1}}, info(told)),
    ok = py_reactor:stop_listener(told).

%%--------------------------------------------------------------------------------------------------
%% Deaths

a_killed_acceptor_costs_nobody_anything(_Config) ->
    {ok, _} = start(hardy, #{protocol => {'__main__', 'Quiet'}}),
    Old = connect(hardy),
    echoes(Old, <<"before">>),
    Before = descriptors(),
    [
        begin
            [Acceptor] = acceptors(hardy),
            ok = sys:suspend(Acceptor),
            Waiting = connect(hardy),
            ok = gen_tcp:send(Waiting, "waits"),
            kill(Acceptor),
            {ok, <<"waits">>} = gen_tcp:recv(Waiting, 5, ?PATIENCE_MS),
            ok = gen_tcp:close(Waiting)
        end
     || _ <- lists:seq(1, 20)
    ],
    echoes(Old, <<"after">>),
    wait_until("no duplicate is left", fun() -> descriptors() =< Before end),
    ok = gen_tcp:close(Old),
    ok = py_reactor:stop_listener(hardy).

an_acceptor_that_is_killed_at_the_limit_comes_back(_Config) ->
    {ok, _} = start(full, #{max_connections => 1, protocol => {'__main__', 'Quiet'}}),
    First = connect(full),
    echoes(First, <<"first">>),
    Second = connect(full),
    ok = gen_tcp:send(Second, "second"),
    [kill(Acceptor) || _ <- lists:seq(1, 5), Acceptor <- acceptors(full)],
    echoes(First, <<"first">>),
    ok = gen_tcp:close(First),
    {ok, <<"second">>} = gen_tcp:recv(Second, 6, ?PATIENCE_MS),
    ok = gen_tcp:close(Second),
    ok = py_reactor:stop_listener(full).

a_killed_leader_leaves_the_port_open(_Config) ->
    {ok, Pid} = start(headless, #{num_acceptors => 2, protocol => {'__main__', 'Quiet'}}),
    Port = py_reactor:get_port(headless),
    Old = connect(headless),
    echoes(Old, <<"before">>),
    [
        begin
            kill(py_reactor_listener_sup:listener(Pid)),
            New = connect(headless),
            echoes(New, <<"new">>),
            ok = gen_tcp:close(New)
        end
     || _ <- lists:seq(1, 20)
    ],
    echoes(Old, <<"after">>),
    ?assertMatch(#{status := running, port := Port, pid := Pid}, info(headless)),
    %% It knows that it was suspended.
    ok = py_reactor:suspend_listener(headless),
    kill(py_reactor_listener_sup:listener(Pid)),
    ?assertMatch(#{status := suspended}, info(headless)),
    ?assertEqual({error, econnrefused}, gen_tcp:connect(?LOOPBACK, Port, [])),
    ok = py_reactor:resume_listener(headless),
    New = connect(headless),
    echoes(New, <<"new">>),
    [ok = gen_tcp:close(Client) || Client <- [Old, New]],
    ok = py_reactor:stop_listener(headless).

a_drain_outlives_a_killed_leader(_Config) ->
    exec(
        "class Stays(Told):\n"
        "    def draining(self):\n"
        "        tell('draining')\n"
        "        return 'continue'\n"
    ),
    {ok, Pid} = start(headless, #{protocol => {'__main__', 'Stays'}}),
    Client = connect(headless),
    {_} = next(<<"made">>),
    Case = self(),
    Drain = spawn_link(fun() -> Case ! {self(), py_reactor:drain_listener(headless, infinity)} end),
    {<<"draining">>} = next(),
    kill(py_reactor_listener_sup:listener(Pid)),
    ?assertMatch(#{status := draining}, info(headless)),
    lost(Client),
    receive
        {Drain, Answer} -> ?assertEqual({ok, 0}, Answer)
    end,
    ?assertMatch(#{status := suspended}, info(headless)),
    ok = py_reactor:stop_listener(headless).

a_killed_listener_ends_its_connections_and_comes_back(_Config) ->
    {ok, Pid} = start(mortal, #{port => free_port(), protocol => {'__main__', 'Echo'}}),
    {ok, _} = start(bystander, #{protocol => {'__main__', 'Quiet'}}),
    Bystander = connect(bystander),
    Clients = [connect(mortal) || _ <- lists:seq(1, 10)],
    [{_} = next(<<"made">>) || _ <- Clients],
    kill(Pid),
    [?assertEqual({<<"stopped">>}, next(<<"lost">>)) || _ <- Clients],
    [?assertEqual(<<>>, await_closed(Client)) || Client <- Clients],
    wait_until("it is back", fun() ->
        case py_reactor:listener_info(mortal) of
            #{status := running, pid := Back} -> Back =/= Pid;
            {error, not_found} -> false
        end
    end),
    New = connect(mortal),
    {_} = next(<<"made">>),
    echoes(New, <<"again">>),
    echoes(Bystander, <<"untouched">>),
    lost(New),
    ok = gen_tcp:close(Bystander),
    [ok = py_reactor:stop_listener(Name) || Name <- [mortal, bystander]].

a_listener_that_cannot_come_back_tries_until_it_can(_Config) ->
    {ok, Pid} = start(robbed, #{port => free_port(), protocol => {'__main__', 'Quiet'}}),
    {ok, _} = start(bystander, #{protocol => {'__main__', 'Quiet'}}),
    Bystander = connect(bystander),
    Port = py_reactor:get_port(robbed),
    ok = py_reactor:suspend_listener(robbed),
    {ok, Thief} = gen_tcp:listen(Port, [{ip, ?LOOPBACK}, {reuseaddr, true}]),
    All = whereis(py_reactor_listeners),
    kill(Pid),
    %% Its tries are far apart: however many, they do not use up the restarts of the supervisor of all.
    wait_until("it has tried often", fun() -> length(reactor_case:logged(fun is_try/1)) >= 10 end),
    ?assertEqual({error, not_found}, py_reactor:listener_info(robbed)),
    ?assertEqual([bystander], py_reactor:which_listeners()),
    ok = gen_tcp:close(Thief),
    wait_until("it is back", fun() -> is_map(py_reactor:listener_info(robbed)) end),
    Client = connect(robbed),
    [echoes(C, <<"hello">>) || C <- [Client, Bystander]],
    ?assertEqual(All, whereis(py_reactor_listeners)),
    [ok = gen_tcp:close(C) || C <- [Client, Bystander]],
    [ok = py_reactor:stop_listener(Name) || Name <- [robbed, bystander]].

%% A line of the supervisor of all about a listener that cannot start again.
is_try(#{text := Text}) ->
    string:find(Text, "start_error") =/= nomatch andalso string:find(Text, "eaddrinuse") =/= nomatch.

a_killed_context_costs_its_own_connections_only(_Config) ->
    process_flag(trap_exit, true),
    [Mortal, Other] = [element(2, py_reactor_context:start_link(#{})) || _ <- [1, 2]],
    {ok, _} = start(split, #{contexts => [Mortal, Other], protocol => {'__main__', 'Quiet'}}),
    Clients = [connect(split) || _ <- lists:seq(1, 10)],
    [echoes(Client, <<"hello">>) || Client <- Clients],
    kill(Mortal),
    ok = py_reactor:wait_for_connections(split, '==', 5),
    New = [connect(split) || _ <- lists:seq(1, 10)],
    [echoes(Client, <<"hello">>) || Client <- New],
    ?assertMatch(#{active := 15, closed_by := #{stopped := 5}}, info(split)),
    ?assertEqual([Other], maps:get(contexts, info(split))),
    [ok = gen_tcp:close(Client) || Client <- Clients ++ New],
    ok = py_reactor:stop_listener(split),
    ok = py_reactor_context:stop(Other).

a_context_of_the_pool_comes_back_and_serves(_Config) ->
    {ok, _} = start(pooled, #{protocol => {'__main__', 'Quiet'}}),
    %% The one that has no bystander of the case.
    [Idle | _] = [
        Context
     || {_, Context, _, _} <- supervisor:which_children(py_reactor_context_sup),
        maps:get(active, py_reactor_context:stats(Context)) =:= 0
    ],
    kill(Idle),
    wait_until("it is back", fun() ->
        #{contexts := Contexts} = info(pooled),
        length(Contexts) =:= 2 andalso not lists:member(Idle, Contexts)
    end),
    [Back] = [C || C <- maps:get(contexts, info(pooled)), active(C) =:= 0],
    Clients = [connect(pooled) || _ <- lists:seq(1, 10)],
    [echoes(Client, <<"hello">>) || Client <- Clients],
    ?assertEqual(5, active(Back)),
    [ok = gen_tcp:close(Client) || Client <- Clients],
    ok = py_reactor:stop_listener(pooled).

without_its_contexts_a_listener_waits_for_them(_Config) ->
    process_flag(trap_exit, true),
    {ok, Context} = py_reactor_context:start_link(#{name => only_context}),
    {ok, _} = start(waiting, #{contexts => [only_context], protocol => {'__main__', 'Quiet'}}),
    kill(Context),
    Client = connect(waiting),
    ok = gen_tcp:send(Client, "hello"),
    #{reason := no_context} = reactor_case:await_logged(#{what => accepting_paused, listener => waiting}),
    ?assertMatch(#{active := 0, status := running, contexts := []}, info(waiting)),
    {ok, Next} = py_reactor_context:start_link(#{name => only_context}),
    {ok, <<"hello">>} = gen_tcp:recv(Client, 5, ?PATIENCE_MS),
    ok = gen_tcp:close(Client),
    ok = py_reactor:stop_listener(waiting),
    ok = py_reactor_context:stop(Next).

the_pool_of_contexts_restarts_under_a_listener(_Config) ->
    {ok, _} = start(pooled, #{protocol => {'__main__', 'Quiet'}}),
    kill(whereis(py_reactor_pool)),
    wait_until("it is back", fun() -> is_pid(whereis(py_reactor_pool)) end),
    Clients = [connect(pooled) || _ <- lists:seq(1, 10)],
    [echoes(Client, <<"hello">>) || Client <- Clients],
    [ok = gen_tcp:close(Client) || Client <- Clients],
    ok = py_reactor:stop_listener(pooled).

%%--------------------------------------------------------------------------------------------------
%% Under a supervisor of the user's

a_listener_lives_under_a_supervisor_of_yours(_Config) ->
    process_flag(trap_exit, true),
    Options = #{ip => loopback, protocol => {'__main__', 'Echo'}, shutdown => 1000},
    Spec = #{id := Id} = py_reactor:child_spec(mine, Options),
    {ok, Supervisor} = own_sup:start_link([Spec]),
    [{Id, Pid, supervisor, _}] = supervisor:which_children(Supervisor),
    ?assertMatch(#{pid := Pid, status := running}, info(mine)),
    ?assertEqual({error, {already_started, Pid}}, start(mine, Options)),
    ?assertEqual({error, supervised}, py_reactor:stop_listener(mine)),
    Client = connect(mine),
    {_} = next(<<"made">>),
    echoes(Client, <<"hello">>),
    kill(Pid),
    {<<"stopped">>} = next(<<"lost">>),
    ?assertEqual(<<>>, await_closed(Client)),
    wait_until("it is back", fun() -> is_map(py_reactor:listener_info(mine)) end),
    Again = connect(mine),
    {_} = next(<<"made">>),
    echoes(Again, <<"hello">>),
    ok = supervisor:terminate_child(Supervisor, Id),
    {_} = next(<<"lost">>),
    ?assertEqual(<<>>, await_closed(Again)),
    ?assertEqual({error, not_found}, py_reactor:listener_info(mine)),
    {ok, _} = supervisor:restart_child(Supervisor, Id),
    ?assertMatch(#{status := running}, info(mine)),
    own_sup:stop(Supervisor),
    ?assertEqual([], py_reactor:which_listeners()).

a_listener_that_ends_late_leaves_the_name_to_the_next_one(_Config) ->
    process_flag(trap_exit, true),
    exec(
        "go = threading.Event()\n"
        "class Stuck(Told):\n"
        "    def data_received(self, data):\n"
        "        tell('stuck')\n"
        "        go.wait()\n"
    ),
    Options = #{ip => loopback, protocol => {'__main__', 'Stuck'}, shutdown => infinity},
    {ok, Own} = own_sup:start_link([Spec = py_reactor:child_spec(late, Options)]),
    #{pid := Supervisor} = info(late),
    Leader = monitor(process, py_reactor_listener_sup:listener(Supervisor)),
    Client = connect(late),
    {_} = next(<<"made">>),
    ok = gen_tcp:send(Client, "x"),
    {} = next(<<"stuck">>),
    {_, Stop} = spawn_monitor(supervisor, terminate_child, [Own, map_get(id, Spec)]),
    wait_until("it drains", fun() -> map_get(status, info(late)) =:= draining end),
    kill(Supervisor),
    receive
        {'DOWN', Stop, process, _, _} -> ok
    end,
    {ok, _} = start(late, #{}),
    exec("go.set()"),
    receive
        {'DOWN', Leader, process, _, _} -> ok
    end,
    ?assertMatch(#{status := running}, info(late)),
    {<<"stopped">>} = next(<<"lost">>),
    ?assertEqual(<<>>, await_closed(Client)),
    ok = py_reactor:stop_listener(late),
    own_sup:stop(Own).

a_bad_child_spec_is_an_error_of_its_supervisor(_Config) ->
    process_flag(trap_exit, true),
    {ok, Supervisor} = own_sup:start_link([]),
    [
        ?assertMatch({error, Reason}, start_child(Supervisor, Options))
     || {Reason, Options} <- [
            {{bad_option, port}, #{port => here}},
            {eaddrnotavail, #{ip => {192, 0, 2, 1}}}
        ]
    ],
    {error, {protocol, _}} = start_child(Supervisor, #{protocol => {nowhere, 'Echo'}}),
    own_sup:stop(Supervisor).

start_child(Supervisor, Options) ->
    case supervisor:start_child(Supervisor, py_reactor:child_spec(bad, Options)) of
        {error, {Reason, _Child}} -> {error, Reason};
        Other -> Other
    end.

%%--------------------------------------------------------------------------------------------------
%% Events

events_tell_what_a_listener_does(_Config) ->
    Case = self(),
    ok = application:set_env(py_reactor, event_handler, fun(Event, Measurements, Metadata) ->
        Case ! {event, Event, Measurements, Metadata}
    end),
    {ok, _} = start(watched, #{protocol => {'__main__', 'Quiet'}}),
    ok = py_reactor:suspend_listener(watched),
    ok = py_reactor:resume_listener(watched),
    {ok, 0} = py_reactor:drain_listener(watched, infinity),
    ok = py_reactor:stop_listener(watched),
    [
        receive
            {event, [py_reactor, listener, What], Measurements, Metadata} ->
                ?assertMatch(#{count := 1}, Measurements),
                ?assertMatch(#{name := watched}, Metadata)
        after ?PATIENCE_MS -> error({no_event, What})
        end
     || What <- [start, suspend, resume, drain, stop]
    ],
    ok = application:unset_env(py_reactor, event_handler).

%%--------------------------------------------------------------------------------------------------
%% Without descriptors

without_descriptors_it_pauses_and_goes_on(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    Port = peer:call(Peer, ?MODULE, serve_in_peer, [], ?PATIENCE_MS),
    Old = connect_port(Port),
    echoes(Old, <<"before">>),
    Began = erlang:monotonic_time(millisecond),
    ok = peer:call(Peer, ?MODULE, take_descriptors, [3], ?PATIENCE_MS),
    Clients = [connect_port(Port) || _ <- lists:seq(1, 20)],
    [ok = gen_tcp:send(Client, "hello") || Client <- Clients],
    Seen = fun() -> peer:call(Peer, ?MODULE, seen_in_peer, [], ?PATIENCE_MS) end,
    wait_until("it was logged more than once", fun() -> length(maps:get(logged, Seen())) > 1 end),
    [echoes(Old, rand:bytes(10_000)) || _ <- lists:seq(1, 100)],
    #{logged := Logged, paused := Paused, active := Active} = Seen(),
    Ended = erlang:monotonic_time(millisecond),
    ?assert(Active >= 1),
    ?assert(Active < 21),
    %% Neither more often than once a second, nor than ten times.
    ?assert((length(Logged) - 1) * 1000 =< Ended - Began),
    ?assert((length(Paused) - 1) * 100 =< Ended - Began),
    ?assertEqual([emfile], lists:usort(Logged ++ Paused)),
    ok = peer:call(Peer, ?MODULE, give_descriptors, [], ?PATIENCE_MS),
    [{ok, <<"hello">>} = gen_tcp:recv(Client, 5, ?PATIENCE_MS) || Client <- Clients],
    ?assertMatch(#{active := 21}, Seen()),
    [ok = gen_tcp:close(Client) || Client <- [Old | Clients]],
    ok = peer:call(Peer, py_reactor, stop_listener, [narrow], ?PATIENCE_MS),
    peer:stop(Peer).

serve_in_peer() ->
    told:start(#{}),
    exec(helpers()),
    exec("import resource\nlimits = resource.getrlimit(resource.RLIMIT_NOFILE)"),
    Case = self(),
    Collector = spawn(fun() ->
        events = ets:new(events, [named_table, public, duplicate_bag]),
        Case ! ready,
        receive
            never -> ok
        end
    end),
    true = register(collector, Collector),
    receive
        ready -> ok
    end,
    ok = logger:add_handler(events, ?MODULE, #{}),
    ok = application:set_env(py_reactor, event_handler, fun
        ([py_reactor, listener, pause], _, #{reason := Reason}) -> ets:insert(events, {paused, Reason});
        (_, _, _) -> ok
    end),
    {ok, _} = start(narrow, #{protocol => {'__main__', 'Quiet'}}),
    py_reactor:get_port(narrow).

take_descriptors(Left) ->
    exec(
        "taken = len(os.listdir('/proc/self/fd')) - 1\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (taken + " ++ integer_to_list(Left) ++ ", limits[1]))"
    ).

give_descriptors() ->
    exec("resource.setrlimit(resource.RLIMIT_NOFILE, limits)").

seen_in_peer() ->
    #{active := Active} = info(narrow),
    #{
        active => Active,
        logged => [Reason || {logged, Reason} <- ets:lookup(events, logged)],
        paused => [Reason || {paused, Reason} <- ets:lookup(events, paused)]
    }.

%% A logger handler, in the peer.
log(#{msg := {report, #{what := accepting_paused, reason := Reason}}}, _Handler) ->
    ets:insert(events, {logged, Reason});
log(_Event, _Handler) ->
    ok.

%%--------------------------------------------------------------------------------------------------
%% The application

an_accept_loop_of_your_own_works_beside_it(Config) ->
    told:protocol("def data_received(self, data):\n    self.write_buffer += data\n"),
    {ok, _} = start(beside, #{protocol => {'__main__', 'Quiet'}}),
    Handed = told:connected(Config),
    Accepted = connect(beside),
    [echoes(Client, <<"hello">>) || Client <- [Handed, Accepted]],
    {ok, 0} = py_reactor:drain_listener(beside, infinity),
    ?assertEqual(<<>>, await_closed(Accepted)),
    echoes(Handed, <<"no business of its">>),
    lost(Handed),
    ok = py_reactor:stop_listener(beside).

the_end_of_the_application_ends_its_listeners(_Config) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io, args => ["-pa" | code:get_path()]}),
    Port = peer:call(Peer, ?MODULE, serve_in_peer, [], ?PATIENCE_MS),
    Client = connect_port(Port),
    echoes(Client, <<"before">>),
    ok = peer:call(Peer, application, stop, [py_reactor], ?PATIENCE_MS),
    ?assertEqual(<<>>, await_closed(Client)),
    ?assertEqual({error, econnrefused}, gen_tcp:connect(?LOOPBACK, Port, [])),
    ?assertEqual(
        [{error, not_running}, {error, not_found}, []],
        [
            peer:call(Peer, py_reactor, start_listener, [narrow, #{}], ?PATIENCE_MS),
            peer:call(Peer, py_reactor, listener_info, [narrow], ?PATIENCE_MS),
            peer:call(Peer, py_reactor, which_listeners, [], ?PATIENCE_MS)
        ]
    ),
    peer:stop(Peer).

%%--------------------------------------------------------------------------------------------------

%% On the loopback address, unless told otherwise.
start(Name, #{ip := _} = Options) ->
    py_reactor:start_listener(Name, Options);
start(Name, #{local := _} = Options) ->
    py_reactor:start_listener(Name, Options);
start(Name, Options) ->
    py_reactor:start_listener(Name, Options#{ip => loopback}).

info(Name) ->
    Info = py_reactor:listener_info(Name),
    ?assert(is_map(Info), {Name, Info}),
    Info.

free_port() ->
    {ok, Reserved} = gen_tcp:listen(0, [{ip, ?LOOPBACK}]),
    {ok, Port} = inet:port(Reserved),
    ok = gen_tcp:close(Reserved),
    Port.

connect(Name) ->
    connect(Name, []).

connect(Name, Options) ->
    connect_port(py_reactor:get_port(Name), Options).

connect_port(Port) ->
    connect_port(Port, []).

connect_port(Port, Options) ->
    {ok, Client} = gen_tcp:connect(?LOOPBACK, Port, [binary, {active, false} | Options], ?PATIENCE_MS),
    Client.

connect_local(Path) ->
    {ok, Client} = gen_tcp:connect({local, Path}, 0, [binary, {active, false}]),
    Client.

%% Closes the client of a protocol that closes at the end of the stream.
lost(Client) ->
    ok = gen_tcp:close(Client),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

%% All that was told until now.
drop_told(Lengths) ->
    receive
        {<<"held">>, Length} -> drop_told([Length | Lengths])
    after 0 -> Lengths
    end.

active(Context) ->
    case py_reactor_context:stats(Context) of
        #{active := Active} -> Active;
        {error, no_context} -> 0
    end.

acceptors(Name) ->
    #{pid := Supervisor} = info(Name),
    Children = lists:sort(supervisor:which_children(Supervisor)),
    [Pid || {{acceptor, _}, Pid, _, _} <- Children].

kill(Pid) ->
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, Pid, _} -> ok
    end.

descriptors() ->
    {ok, Names} = file:list_dir("/proc/self/fd"),
    length(Names).

%%% Bad input: the connection or the call pays, nothing else.
-module(bad_input_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [
    use/1, exec/1, eval/1, open/1, open/2, open/3, connect/1, accept/1, handoff/1, handoff/2, reset/1,
    await_closed/1, await_ledger/1, await_logged/1, logged/1, wait_until/2, wait_until/3
]).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, lingering}, {group, parked_at_once}].

groups() ->
    [
        {lingering, [], cases()},
        {parked_at_once, [], cases()}
    ].

cases() ->
    [
        echo_leaves_nothing_behind,
        %% Actions
        wrong_answer_of_connection_made_costs_the_connection,
        wrong_answer_of_data_received_costs_the_connection,
        wrong_answer_of_eof_received_costs_the_connection,
        wrong_answer_of_write_ready_costs_the_connection,
        wrong_answer_of_datagram_received_costs_the_socket,
        answer_of_connection_lost_is_ignored,
        str_subclass_counts_by_its_letters,
        %% Exceptions
        exception_in_the_factory_costs_the_connection,
        exception_in_init_costs_the_connection,
        exception_in_connection_made_costs_the_connection,
        exception_in_data_received_costs_the_connection,
        exception_in_eof_received_costs_the_connection,
        exception_in_write_ready_costs_the_connection,
        exception_in_datagram_received_costs_the_socket,
        exception_in_connection_lost_is_logged,
        %% Factories
        what_is_no_factory_is_refused,
        factory_that_returns_no_protocol_costs_the_connection,
        factory_that_returns_one_protocol_twice_loses_the_second_connection,
        protocol_that_cannot_be_set_up_is_told_of_its_end,
        method_that_is_none_costs_the_connection,
        exception_in_del_is_logged,
        %% Attributes
        spoilt_write_buffer_costs_the_connection,
        exported_write_buffer_costs_the_connection,
        write_buffer_of_any_subclass_is_sent,
        spoilt_attributes_do_not_matter,
        spoilt_handle_costs_the_call,
        %% By hand
        functions_for_driving_by_hand_are_harmless_in_callbacks,
        %% Descriptors that Python closes
        descriptor_closed_in_a_callback_ends_its_connection,
        descriptor_closed_while_parked_ends_when_its_number_returns,
        descriptor_closed_by_another_thread_ends_its_connection,
        number_of_a_closed_descriptor_serves_the_next_connection,
        file_with_the_number_of_a_closed_descriptor_is_left_alone,
        descriptor_that_is_replaced_is_left_alone,
        blocking_mode_set_by_a_callback_blocks_nobody,
        %% Handing over
        handoff_of_a_wrong_number_is_badf,
        handoff_of_what_cannot_be_polled_is_refused,
        handoff_of_a_listener_is_refused,
        handoff_of_a_closed_socket_is_badf,
        handoff_twice_serves_once,
        handoff_to_nobody_closes,
        handoff_with_bad_info_closes
    ].

init_per_group(Group, Config) ->
    LingerMs = maps:get(Group, #{lingering => 20, parked_at_once => 0}),
    ok = reactor_case:start(#{linger_ms => LingerMs}),
    ok = py:add_path(?config(data_dir, Config)),
    ok = py:exec("import bad_protocols"),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(_Case, Config) ->
    reactor_case:begin_case(Config).

end_per_testcase(_Case, Config) ->
    reactor_case:end_case(Config).

echo_leaves_nothing_behind(Config) ->
    use("reactor_case.Echo"),
    Client = open(?config(listener, Config)),
    ok = reactor_case:echoes(Client, <<"hello">>),
    ok = gen_tcp:shutdown(Client, write),
    <<>> = await_closed(Client),
    await_ledger(1).

%%--------------------------------------------------------------------------------------------------
%% Actions

wrong_answer_of_connection_made_costs_the_connection(Config) ->
    wrong_answers(Config, connection_made).

wrong_answer_of_data_received_costs_the_connection(Config) ->
    wrong_answers(Config, data_received).

wrong_answer_of_eof_received_costs_the_connection(Config) ->
    wrong_answers(Config, eof_received).

wrong_answer_of_write_ready_costs_the_connection(Config) ->
    wrong_answers(Config, write_ready).

wrong_answer_of_datagram_received_costs_the_socket(Config) ->
    wrong_answers(Config, datagram_received).

wrong_answers(Config, Callback) ->
    Names = eval("list(__import__('bad_values').BAD_ACTIONS)"),
    [wrong_answer(Config, Callback, Name) || Name <- Names],
    await_ledger(length(Names)),
    %% Nothing else is logged.
    ?assertEqual(length(Names), length(logged(#{level => error}))).

wrong_answer(Config, Callback, Name) ->
    ct:pal("~p answers ~ts", [Callback, Name]),
    {ok, none} = py:call(bad_protocols, answer, [atom_to_binary(Callback), Name]),
    {Peer, Answer} = provoke(Callback, Config),
    Line = await_logged(#{peer => Peer}),
    ?assertMatch(
        #{level := error, protocol := <<"bad_protocols.Misbehaving">>, callback := _}, Line
    ),
    ?assertEqual(atom_to_binary(Callback), map_get(callback, Line)),
    ?assertMatch({_, _}, binary:match(map_get(traceback, Line), <<"is no action">>)),
    ?assert(byte_size(map_get(traceback, Line)) < 1000),
    check_answer(Answer, Line).

answer_of_connection_lost_is_ignored(Config) ->
    Names = eval("list(__import__('bad_values').BAD_ACTIONS)"),
    [
        begin
            {ok, none} = py:call(bad_protocols, answer, [<<"connection_lost">>, Name]),
            provoke(connection_lost, Config)
        end
     || Name <- Names
    ],
    await_ledger(length(Names)),
    ?assertEqual([], logged(#{level => error})).

str_subclass_counts_by_its_letters(Config) ->
    use("bad_protocols.Repeater"),
    [
        begin
            Client = open(?config(listener, Config)),
            ok = gen_tcp:send(Client, Word),
            <<>> = await_closed(Client)
        end
     || Word <- [<<"close">>, <<"abort">>]
    ],
    await_ledger(2),
    ?assertEqual([<<"closed">>, <<"aborted">>], reactor_case:loss_reasons()),
    ?assertEqual([], logged(#{level => error})).

%%--------------------------------------------------------------------------------------------------
%% Exceptions

exception_in_the_factory_costs_the_connection(Config) ->
    exceptions(Config, factory, 0).

exception_in_init_costs_the_connection(Config) ->
    %% There is no protocol that could be told of its end.
    exceptions(Config, '__init__', 0).

exception_in_connection_made_costs_the_connection(Config) ->
    exceptions(Config, connection_made, 1).

exception_in_data_received_costs_the_connection(Config) ->
    exceptions(Config, data_received, 1).

exception_in_eof_received_costs_the_connection(Config) ->
    exceptions(Config, eof_received, 1).

exception_in_write_ready_costs_the_connection(Config) ->
    exceptions(Config, write_ready, 1).

exception_in_datagram_received_costs_the_socket(Config) ->
    exceptions(Config, datagram_received, 1).

exception_in_connection_lost_is_logged(Config) ->
    exceptions(Config, connection_lost, 1).

exceptions(Config, Callback, Losses) ->
    Names = eval("list(__import__('bad_values').EXCEPTIONS)"),
    [exception(Config, Callback, Name) || Name <- Names],
    wait_until("every protocol is lost once", fun() ->
        #{<<"lost_once">> := Once, <<"lost_more">> := More} = reactor_case:ledger(),
        {Once, More}
    end, {Losses * length(Names), 0}),
    ?assertEqual(length(Names), length(logged(#{level => error}))).

exception(Config, Callback, Name) ->
    ct:pal("~ts in ~p", [Name, Callback]),
    {ok, none} = py:call(bad_protocols, throw, [atom_to_binary(Callback), Name]),
    {Peer, Answer} = provoke(Callback, Config),
    Line = await_logged(#{peer => Peer}),
    %% One kind hides the name of its class.
    Class = re:replace(Name, " .*|^Modest$", "", [{return, binary}]),
    Traceback = map_get(traceback, Line),
    ?assertEqual(error, map_get(level, Line)),
    ?assertEqual(protocol_of(Callback), map_get(protocol, Line)),
    ?assertEqual(callback_of(Callback), map_get(callback, Line)),
    ?assertNotEqual(nomatch, binary:match(Traceback, <<"bad_values.py">>)),
    ?assertNotEqual(nomatch, string:find(Traceback, Class)),
    ?assert(byte_size(Traceback) < 20000),
    check_answer(Answer, Line).

protocol_of(factory) -> <<"?">>;
protocol_of(_) -> <<"bad_protocols.Misbehaving">>.

callback_of('__init__') -> <<"factory">>;
callback_of(Callback) -> atom_to_binary(Callback).

%%--------------------------------------------------------------------------------------------------
%% Factories

what_is_no_factory_is_refused(Config) ->
    use("reactor_case.Echo"),
    Names = eval("list(bad_protocols.NO_FACTORIES)"),
    ?assertEqual({ok, Names}, py:call(bad_protocols, refused_factories, [])),
    Client = open(?config(listener, Config)),
    ok = reactor_case:echoes(Client, <<"the factory before still counts">>),
    ok = gen_tcp:close(Client),
    await_ledger(1).

factory_that_returns_no_protocol_costs_the_connection(Config) ->
    Names = eval("list(bad_protocols.NO_PROTOCOLS)"),
    [
        begin
            ct:pal("~ts", [Name]),
            {ok, none} = py:call(bad_protocols, sham, [Name]),
            {Peer, Answer} = provoke(factory, Config),
            Line = await_logged(#{peer => Peer}),
            ?assertMatch(#{level := error, callback := <<"factory">>, protocol := <<"?">>}, Line),
            ?assert(byte_size(map_get(traceback, Line)) < 1000),
            check_answer(Answer, Line)
        end
     || Name <- Names
    ],
    ?assertEqual(length(Names), length(logged(#{level => error}))).

factory_that_returns_one_protocol_twice_loses_the_second_connection(Config) ->
    use("bad_protocols.one_for_all"),
    Client = open(?config(listener, Config)),
    {_, {error, {protocol, _}}} = provoke(factory, Config),
    ok = reactor_case:echoes(Client, <<"the first goes on">>),
    ok = gen_tcp:close(Client),
    await_ledger(1),
    {_, {error, {protocol, Traceback}}} = provoke(factory, Config),
    ?assertNotEqual(nomatch, string:find(Traceback, "has a connection already")),
    await_ledger(1),
    exec("bad_protocols.forget_one_for_all()").

protocol_that_cannot_be_set_up_is_told_of_its_end(Config) ->
    Classes = ["Unassignable", "FixedNumber"],
    [
        begin
            use(["bad_protocols.", Class]),
            {Peer, Answer} = provoke(connection_made, Config),
            Line = await_logged(#{peer => Peer}),
            Protocol = list_to_binary(["bad_protocols.", Class]),
            ?assertMatch(#{protocol := Protocol, callback := <<"connection_made">>}, Line),
            check_answer(Answer, Line)
        end
     || Class <- Classes
    ],
    await_ledger(length(Classes)).

method_that_is_none_costs_the_connection(Config) ->
    use("bad_protocols.Uncallable"),
    {Peer, ok} = provoke(data_received, Config),
    ?assertMatch(#{callback := <<"data_received">>}, await_logged(#{peer => Peer})),
    await_ledger(1).

exception_in_del_is_logged(Config) ->
    use("bad_protocols.LastWords"),
    {_, ok} = provoke(eof_received, Config),
    await_ledger(1),
    wait_until("the exception is logged", fun() ->
        [] =/= logged(fun(#{text := Text}) -> string:find(Text, "last words") =/= nomatch end)
    end).

%%--------------------------------------------------------------------------------------------------
%% Attributes

spoilt_write_buffer_costs_the_connection(Config) ->
    use("bad_protocols.Puppet"),
    Spoilers = [
        "del self.write_buffer",
        "self.write_buffer = 'text'",
        "self.write_buffer = b'bytes'",
        "self.write_buffer = None",
        "self.write_buffer = 5",
        "self.write_buffer = memoryview(b'bytes')",
        "self.write_buffer = Hostile()",
        "self.write_buffer = Nameless()"
    ],
    Answers = ["None", "'write_pending'", "'close'"],
    Codes = [[Spoiler, "; answer = ", Answer] || Spoiler <- Spoilers, Answer <- Answers],
    [costs_the_connection(Config, Code) || Code <- Codes],
    await_ledger(length(Codes)).

exported_write_buffer_costs_the_connection(Config) ->
    use("bad_protocols.Puppet"),
    %% The bytes are sent; that they cannot be removed costs the connection.
    [
        begin
            Client = open(?config(listener, Config)),
            {ok, Port} = inet:port(Client),
            ok = gen_tcp:send(Client, [
                "self.write_buffer += b'12345'; self.view = memoryview(self.write_buffer); answer = ",
                Answer
            ]),
            ?assertEqual(<<"12345">>, await_closed(Client)),
            ?assertMatch(
                #{text := <<"bad_protocols.Puppet.write_ready: BufferError", _/binary>>},
                await_logged(#{peer => peer(Port)})
            )
        end
     || Answer <- ["None", "'write_pending'", "'close'"]
    ],
    await_ledger(3).

write_buffer_of_any_subclass_is_sent(Config) ->
    use("bad_protocols.Puppet"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "self.write_buffer = HostileBytearray(b'12345'); answer = None"),
    {ok, <<"12345">>} = gen_tcp:recv(Client, 5, 5000),
    ok = gen_tcp:send(Client, "self.write_buffer += b'67890'; answer = 'close'"),
    <<"67890">> = await_closed(Client),
    await_ledger(1),
    ?assertEqual([], logged(#{level => error})).

spoilt_attributes_do_not_matter(Config) ->
    use("bad_protocols.Puppet"),
    Spoilers = [
        "self.fd = -1",
        "self.fd = 0",
        "self.fd = self.fd + 1",
        "self.fd = 2**100",
        "self.fd = None",
        "del self.fd",
        "self.closed = True",
        "del self.closed",
        "self.peer = Hostile()",
        "del self.peer",
        "self.client_info = None",
        "del self.client_info",
        "self.client_info.clear(); self.client_info[self] = self",
        "self.close_reason = 5",
        "self.write_ready = None",
        "self.handle = self._handle; del self._handle",
        "self._handle = None",
        "self._handle = Hostile()"
    ],
    [
        begin
            Client = open(?config(listener, Config)),
            ok = gen_tcp:send(Client, [
                Spoiler, "; self.write_buffer += b'still'; answer = 'write_pending'"
            ]),
            {ok, <<"still">>} = gen_tcp:recv(Client, 5, 5000),
            ok = gen_tcp:send(Client, "self.write_buffer += b'here'; answer = 'close'"),
            ?assertEqual({Spoiler, <<"here">>}, {Spoiler, await_closed(Client)})
        end
     || Spoiler <- Spoilers
    ],
    await_ledger(length(Spoilers)),
    ?assertEqual([], logged(#{level => error})),
    ?assertEqual([<<"closed">>], lists:usort(reactor_case:loss_reasons())).

spoilt_handle_costs_the_call(Config) ->
    use("bad_protocols.Puppet"),
    Spoilers = ["del self._handle", "self._handle = None", "self._handle = 5", "self._handle = self"],
    Calls = ["self.write(b'x')", "self.read(1)", "reactor.resume(self)"],
    Codes = [[Spoiler, "; ", Call] || Spoiler <- Spoilers, Call <- Calls],
    [costs_the_connection(Config, Code) || Code <- Codes],
    await_ledger(length(Codes)).

%% Sends code to a puppet, which must cost it its connection and be logged.
costs_the_connection(Config, Code) ->
    Client = open(?config(listener, Config)),
    {ok, Port} = inet:port(Client),
    ok = gen_tcp:send(Client, Code),
    <<>> = await_closed(Client),
    Line = await_logged(#{peer => peer(Port)}),
    ?assertMatch(#{level := error, protocol := <<"bad_protocols.Puppet">>, traceback := _}, Line),
    Line.

%%--------------------------------------------------------------------------------------------------
%% By hand

functions_for_driving_by_hand_are_harmless_in_callbacks(Config) ->
    exec("bad_protocols.Meddler.calls.clear()"),
    use("bad_protocols.Meddler"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, <<"data">>),
    <<>> = await_closed(Client),
    await_ledger(1),
    Calls = eval("bad_protocols.Meddler.calls"),
    Expected = fun(Callback, Results) ->
        [{Callback, Name, Result} || {Name, Result} <- Results]
    end,
    ByHand = [{<<"read">>, <<"ValueError">>}, {<<"write">>, <<"ValueError">>}],
    Alive = ByHand ++
        [{<<"init">>, <<"ValueError">>}, {<<"get">>, <<"True">>}, {<<"resume">>, <<"True">>}],
    ?assertEqual(
        Expected(
            <<"__init__">>,
            ByHand ++
                [
                    {<<"init">>, <<"OSError">>},
                    {<<"get">>, <<"False">>},
                    {<<"resume">>, <<"ValueError">>},
                    {<<"close">>, <<"ValueError">>}
                ]
        ) ++
            Expected(<<"connection_made">>, Alive) ++
            Expected(<<"data_received">>, Alive) ++
            Expected(<<"write_ready">>, Alive ++ [{<<"close">>, <<"None">>}]) ++
            Expected(
                <<"connection_lost">>,
                ByHand ++
                    [
                        {<<"get">>, <<"False">>},
                        {<<"resume">>, <<"True">>},
                        {<<"close">>, <<"ValueError">>}
                    ]
            ),
        Calls
    ),
    ?assertEqual([], logged(#{level => error})).

%%--------------------------------------------------------------------------------------------------
%% Descriptors that Python closes

descriptor_closed_in_a_callback_ends_its_connection(Config) ->
    use("bad_protocols.Puppet"),
    Closers = ["os.close(self.fd)", "socket.socket(fileno=self.fd).close()"],
    Answers = [
        "answer = 'continue'",
        "answer = 'read_pending'",
        "answer = None",
        "answer = 'close'",
        "answer = 'abort'",
        "self.write_buffer += b'x'; answer = None",
        "self.write_buffer += b'x'; answer = 'write_pending'",
        "self.write_buffer += b'x'; answer = 'close'",
        "self.write(b'x')",
        "self.read(1)",
        "raise ValueError"
    ],
    Codes = [[Closer, "; ", Answer] || Closer <- Closers, Answer <- Answers],
    [
        begin
            Client = open(?config(listener, Config)),
            ok = gen_tcp:send(Client, Code),
            ?assertEqual({Code, <<>>}, {Code, await_closed(Client)}),
            await_ledger(Made)
        end
     || {Made, Code} <- lists:zip(lists:seq(1, length(Codes)), Codes)
    ].

descriptor_closed_while_parked_ends_when_its_number_returns(Config) ->
    Listener = ?config(listener, Config),
    use("bad_protocols.Puppet"),
    Spare = {connect(Listener), accept(Listener)},
    Client = open(Listener),
    await_parked(1),
    Number = eval("bad_protocols.puppet(0).fd"),
    exec(["__import__('os').close(", integer_to_list(Number), ")"]),
    <<>> = await_closed(Client),
    Next = serve_at(Number, Spare),
    wait_until("the parked one is lost", fun reactor_case:loss_reasons/0, [<<"descriptor_gone">>]),
    ok = all_is_well(Next),
    await_ledger(2).

descriptor_closed_by_another_thread_ends_its_connection(Config) ->
    Listener = ?config(listener, Config),
    use("reactor_case.Echo"),
    Rounds = 30,
    [
        begin
            Client = open(Listener),
            Busy = spawn_link(fun() -> exchange(Client) end),
            ok = gen_tcp:controlling_process(Client, Busy),
            Busy ! go,
            Monitor = monitor(process, Busy),
            exec("bad_protocols.close_newest_echo()"),
            receive
                {'DOWN', Monitor, process, Busy, normal} -> ok
            end,
            await_ledger(Made)
        end
     || Made <- lists:seq(1, Rounds)
    ],
    ?assertEqual([], logged(#{level => error})).

%% Echoes until the connection ends. What comes back is right up to there.
exchange(Client) ->
    receive
        go -> exchange(Client, 0)
    end.

exchange(Client, Round) ->
    Data = rand:bytes(1000),
    case gen_tcp:send(Client, Data) of
        ok ->
            case gen_tcp:recv(Client, 1000, 10000) of
                {ok, Data} -> exchange(Client, Round + 1);
                {error, Reason} when Reason =:= closed; Reason =:= econnreset -> ok
            end;
        {error, Reason} when Reason =:= closed; Reason =:= econnreset; Reason =:= epipe ->
            ok
    end.

number_of_a_closed_descriptor_serves_the_next_connection(Config) ->
    Listener = ?config(listener, Config),
    use("bad_protocols.Puppet"),
    Spare = {connect(Listener), accept(Listener)},
    Client = open(Listener),
    %% A paused one does not look at its descriptor by itself.
    ok = gen_tcp:send(Client, "os.close(self.fd); answer = 'pause'"),
    <<>> = await_closed(Client),
    Number = eval("bad_protocols.puppet(0).fd"),
    Next = serve_at(Number, Spare),
    wait_until("the old one is lost", fun reactor_case:loss_reasons/0, [<<"descriptor_gone">>]),
    ?assertMatch(
        {ok, 1}, py:eval(["reactor.get_protocol(", integer_to_list(Number), ").serial"])
    ),
    ok = all_is_well(Next),
    await_ledger(2).

%% Hands a connection over that gets this number, the lowest that is free. Returns its client.
serve_at(Number, {Client, Socket}) ->
    {ok, none} = py:call(bad_protocols, fill_below, [Number]),
    ok = handoff(Socket),
    {ok, none} = py:call(bad_protocols, close_no_connection, []),
    ok = gen_tcp:send(Client, "self.write_buffer += b'%08d' % self.fd; answer = None"),
    {ok, Digits} = gen_tcp:recv(Client, 8, 5000),
    ?assertEqual(Number, binary_to_integer(Digits)),
    Client.

%% The puppet still does what it is told, and closes.
all_is_well(Client) ->
    ok = gen_tcp:send(Client, "self.write_buffer += b'well'; answer = 'close'"),
    <<"well">> = await_closed(Client),
    ok.

file_with_the_number_of_a_closed_descriptor_is_left_alone(Config) ->
    use("bad_protocols.Puppet"),
    File = filename:join(?config(priv_dir, Config), "reused"),
    Ends = [
        "",
        "self.write_buffer += b'x'; answer = None",
        "self.write_buffer += b'x'; answer = 'close'",
        "self.write(b'x')",
        "self.read(1)",
        "answer = 'abort'",
        "answer = 'pause'"
    ],
    [
        begin
            Client = open(?config(listener, Config)),
            ok = gen_tcp:send(Client, ["take_number(self, '", File, "'); ", End]),
            <<>> = await_closed(Client),
            %% Some do not look at their descriptor any more; they close when they are asked to.
            exec("bad_protocols.abort_puppets()"),
            await_ledger(Made),
            ?assertEqual({ok, <<"mine">>}, py:call(bad_protocols, file_of_taken_number, []))
        end
     || {Made, End} <- lists:zip(lists:seq(1, length(Ends)), Ends)
    ].

descriptor_that_is_replaced_is_left_alone(Config) ->
    use("bad_protocols.Puppet"),
    Ends = ["", "self.write_buffer += b'x'; answer = None", "self.write(b'x')", "self.read(1)"],
    [
        begin
            Client = open(?config(listener, Config)),
            ok = gen_tcp:send(Client, ["replace(self); ", End]),
            <<>> = await_closed(Client),
            exec("bad_protocols.abort_puppets()"),
            await_ledger(Made),
            ?assertEqual({ok, <<"/dev/null">>}, py:call(bad_protocols, close_replacement, []))
        end
     || {Made, End} <- lists:zip(lists:seq(1, length(Ends)), Ends)
    ].

blocking_mode_set_by_a_callback_blocks_nobody(Config) ->
    use("bad_protocols.Puppet"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "os.set_blocking(self.fd, True); self.write_buffer += b'x' * 20_000_000; answer = None"),
    %% The bystander has its echoes while nobody reads this.
    wait_until("the kernel takes no more", fun() ->
        Before = eval("len(bad_protocols.puppet(0).write_buffer)"),
        timer:sleep(20),
        Before > 0 andalso Before =:= eval("len(bad_protocols.puppet(0).write_buffer)")
    end),
    {ok, Data} = gen_tcp:recv(Client, 20000000, 20000),
    ?assertEqual(20000000, byte_size(Data)),
    ok = all_is_well(Client),
    await_ledger(1).

%% So many connections, beside the bystander's own, are parked at some moment.
await_parked(Wanted) ->
    wait_until("they are parked", fun() -> stat(parked) >= Wanted end).

stat(Key) ->
    lists:sum([map_get(Key, py_reactor_context:stats(Context)) || Context <- contexts()]).

contexts() ->
    [Pid || {_, Pid, _, _} <- supervisor:which_children(py_reactor_context_sup), is_pid(Pid)].

%%--------------------------------------------------------------------------------------------------
%% Handing over

handoff_of_a_wrong_number_is_badf(_Config) ->
    use("reactor_case.Echo"),
    Numbers = [-1, -2, 99999, 1 bsl 31 - 1, 1 bsl 31, 1 bsl 32 + 1, 1 bsl 40, 1 bsl 63, 1 bsl 64, 1 bsl 700],
    [
        ?assertEqual({Number, {error, badf}}, {Number, py_reactor_context:handoff(Number, #{})})
     || Sign <- [1, -1], N <- Numbers, Number <- [Sign * N], Number =/= 1, Number =/= 2
    ],
    [
        ?assertError(_, py_reactor_context:handoff(NoNumber, #{}))
     || NoNumber <- [atom, 1.5, <<"5">>, "5", {5}, #{}, self(), make_ref(), fun() -> 5 end]
    ],
    await_ledger(0).

handoff_of_what_cannot_be_polled_is_refused(_Config) ->
    use("reactor_case.Echo"),
    Kinds = eval("list(bad_protocols.NO_CONNECTIONS)"),
    [
        begin
            {ok, Number} = py:call(bad_protocols, open_no_connection, [Kind]),
            ?assertEqual(
                {Kind, {error, {unsupported_fd, binary_to_atom(Reason)}}},
                {Kind, py_reactor_context:handoff(Number, #{})}
            ),
            {ok, none} = py:call(bad_protocols, close_no_connection, [])
        end
     || [Kind, Reason] <- eval("[[k, r] for k, (r, _) in bad_protocols.NO_CONNECTIONS.items()]")
    ],
    ?assert(length(Kinds) > 10),
    await_ledger(0).

handoff_of_a_listener_is_refused(_Config) ->
    use("reactor_case.Echo"),
    Refused = {error, {unsupported_fd, listener}},
    ByNumber = reactor_case:listen(),
    BySocket = reactor_case:listen(),
    {ok, Fd} = inet:getfd(ByNumber),
    ?assertEqual(Refused, py_reactor_context:handoff(Fd, #{})),
    ?assertEqual(Refused, py_reactor_context:handoff(BySocket, #{})),
    %% Consumed, whatever the answer.
    [?assertEqual(undefined, erlang:port_info(Port)) || Port <- [ByNumber, BySocket]],
    {ok, Socket} = socket:open(inet, stream),
    ok = socket:bind(Socket, #{family => inet, addr => loopback, port => 0}),
    ok = socket:listen(Socket),
    ?assertEqual(Refused, py_reactor_context:handoff(Socket, #{})),
    ?assertMatch({error, closed}, socket:sockname(Socket)),
    await_ledger(0).

handoff_of_a_closed_socket_is_badf(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    Client = connect(Listener),
    Socket = accept(Listener),
    ok = gen_tcp:close(Socket),
    ?assertEqual({error, badf}, py_reactor_context:handoff(Socket, #{})),
    ok = gen_tcp:close(Client),
    {ok, Other} = socket:open(inet, stream),
    ok = socket:close(Other),
    ?assertEqual({error, badf}, py_reactor_context:handoff(Other, #{})),
    await_ledger(0).

handoff_twice_serves_once(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    Client = connect(Listener),
    Socket = accept(Listener),
    ok = py_reactor_context:handoff(Socket, #{}),
    ?assertEqual({error, badf}, py_reactor_context:handoff(Socket, #{})),
    ok = reactor_case:echoes(Client, <<"served">>),
    ok = gen_tcp:close(Client),
    await_ledger(1),
    %% A descriptor that is not ours to close can be handed over as often as its owner likes.
    {ok, Number} = py:call(bad_protocols, open_pair, []),
    [ok = py_reactor_context:handoff(Number, #{}) || _ <- [1, 2, 3]],
    {ok, true} = py:call(bad_protocols, pair_echoes, []),
    {ok, none} = py:call(bad_protocols, close_pair, []),
    await_ledger(4).

handoff_to_nobody_closes(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    {ok, Stopped} = py_reactor_context:start_link(#{}),
    ok = py_reactor_context:stop(Stopped),
    {ok, Killed} = py_reactor_context:start_link(#{}),
    unlink(Killed),
    Monitor = monitor(process, Killed),
    exit(Killed, kill),
    receive
        {'DOWN', Monitor, process, Killed, killed} -> ok
    end,
    [
        begin
            Client = connect(Listener),
            Answer = py_reactor_context:handoff(Context, accept(Listener), #{}),
            ?assertEqual({Context, {error, no_context}}, {Context, Answer}),
            <<>> = await_closed(Client)
        end
     || Context <- [Stopped, Killed, self(), nobody, undefined, kernel_sup]
    ],
    await_ledger(0).

handoff_with_bad_info_closes(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    Infos = [
        none,
        [],
        [{addr, "127.0.0.1"}],
        <<"info">>,
        #{1 => 1},
        #{1.5 => 1},
        #{"port" => 1},
        #{{a, b} => 1},
        #{self() => 1},
        #{a => 1, <<"a">> => 2},
        #{a => #{[1] => 2}},
        #{<<255>> => 1},
        #{a => <<255, 254>>},
        #{a => <<1:3>>},
        #{a => fun() -> ok end},
        #{a => Listener},
        #{a => [1 | 2]},
        #{a => nest(2000)},
        #{a => binary:copy(<<"x">>, 100000)},
        #{a => lists:seq(1, 100000)},
        #{a => 1 bsl 600000},
        #{nodelay => maybe},
        #{nodelay => 1},
        #{addr => [a, b]},
        #{addr => [255, 16#110000]},
        #{addr => [1 | 2]},
        #{addr => {1, 2}},
        #{addr => {a, b, c, d}},
        #{addr => {256, 0, 0, 1}},
        #{addr => {local, self()}}
    ],
    [
        begin
            Client = connect(Listener),
            Answer = handoff(accept(Listener), Info),
            ?assertMatch({_, {error, {bad_info, _}}}, {Info, Answer}),
            {error, {bad_info, Explanation}} = Answer,
            ?assert(is_binary(Explanation) andalso byte_size(Explanation) < 200),
            <<>> = await_closed(Client)
        end
     || Info <- Infos
    ],
    await_ledger(0).

nest(0) -> [];
nest(Depth) -> [nest(Depth - 1)].

%%--------------------------------------------------------------------------------------------------
%% Helpers

%% Makes a connection with the present factory and drives it until the callback has run and the
%% connection is closed. Returns the peer as the log has it, and what the handoff answered.
provoke(datagram_received, _Config) ->
    {ok, Socket} = gen_udp:open(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    Answer = handoff(Socket),
    {ok, Client} = gen_udp:open(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, ClientPort} = inet:port(Client),
    ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, <<"datagram">>),
    ok = gen_udp:close(Client),
    {peer(ClientPort), Answer};
provoke(Callback, Config) ->
    Listener = ?config(listener, Config),
    Client = connect(Listener),
    {ok, ClientPort} = inet:port(Client),
    Answer = handoff(accept(Listener)),
    case Callback of
        data_received -> ok = gen_tcp:send(Client, <<"data">>);
        write_ready -> ok = gen_tcp:send(Client, <<"data">>);
        eof_received -> ok = gen_tcp:shutdown(Client, write);
        connection_lost -> ok = gen_tcp:shutdown(Client, write);
        _ -> ok
    end,
    <<>> = await_closed(Client),
    {peer(ClientPort), Answer}.

peer(Port) ->
    iolist_to_binary(io_lib:format("127.0.0.1:~b", [Port])).

%% A protocol that was never served makes the handoff fail, with the traceback that is logged.
check_answer(Answer, #{callback := Callback, traceback := Traceback}) when
    Callback =:= <<"factory">>; Callback =:= <<"connection_made">>
->
    ?assertEqual({error, {protocol, Traceback}}, Answer);
check_answer(Answer, _Line) ->
    ?assertEqual(ok, Answer).

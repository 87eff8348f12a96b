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
    [{group, lingering}, {group, parked_at_once}, {group, two_contexts}, {group, application_stopped}].

groups() ->
    [
        {lingering, [], cases()},
        {parked_at_once, [], cases()},
        {two_contexts, [], [
            sleep_in_a_callback_holds_up_its_own_context_only,
            handoff_while_all_contexts_are_held_up_does_not_wait
        ]},
        {application_stopped, [], [
            handoff_with_the_application_stopped_closes,
            handoffs_while_the_application_stops_are_answered
        ]}
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
        bad_arguments_raise_what_can_be_caught,
        %% By hand
        functions_for_driving_by_hand_are_harmless_in_callbacks,
        functions_for_driving_by_hand_refuse_bad_input,
        protocol_that_is_false_is_found,
        %% Descriptors that Python closes
        descriptor_closed_in_a_callback_ends_its_connection,
        descriptor_closed_while_parked_ends_when_its_number_returns,
        descriptor_closed_by_another_thread_ends_its_connection,
        number_of_a_closed_descriptor_serves_the_next_connection,
        number_of_a_closed_descriptor_may_go_to_another_context,
        file_with_the_number_of_a_closed_descriptor_is_left_alone,
        port_with_the_number_of_a_closed_descriptor_is_left_alone,
        descriptor_that_is_replaced_is_left_alone,
        blocking_mode_set_by_a_callback_blocks_nobody,
        %% Handing over
        handoff_of_a_wrong_number_is_badf,
        handoff_of_what_cannot_be_polled_is_refused,
        handoff_of_a_listener_is_refused,
        handoff_of_a_closed_socket_is_badf,
        handoff_twice_serves_once,
        handoff_to_nobody_closes,
        handoff_with_bad_info_closes,
        handoff_beyond_the_limit_is_overload,
        handoffs_to_a_context_that_is_being_killed_are_answered,
        killed_context_loses_its_own_connections_once,
        killed_helpers_are_started_again,
        %% Callbacks that do not return
        interrupt_ends_a_callback_that_never_returns,
        stop_ends_a_callback_that_never_returns,
        kill_ends_a_callback_that_never_returns,
        interrupt_hits_nothing_but_a_callback,
        context_whose_callback_takes_no_interrupt_is_left_behind,
        connections_handed_to_a_held_up_context_are_served_later,
        %% Peers
        reset_before_the_handoff_is_one_loss_at_most,
        reset_right_after_the_handoff_is_one_loss,
        reset_while_parked_is_one_loss,
        reset_while_paused_is_one_loss,
        reset_while_a_write_is_pending_is_one_loss,
        reset_while_closing_is_one_loss,
        reset_of_a_connection_that_never_writes_is_one_loss,
        exception_after_a_reset_is_logged_with_the_peer,
        half_close_delivers_what_is_pending,
        flood_of_silent_connections_leaves_nothing_behind,
        thousand_connections_reset_at_once_leave_nothing_behind,
        %% Large writes and other threads
        large_write_to_a_slow_reader_takes_no_memory_but_its_buffer,
        large_write_arrives_whole,
        large_write_by_a_write_ready_of_its_own_arrives_whole,
        large_write_to_the_kernel_takes_what_it_takes,
        threads_may_write_while_the_connection_ends
    ].

init_per_group(Group, Config) ->
    Settings = #{
        lingering => #{},
        parked_at_once => #{linger_ms => 0},
        two_contexts => #{contexts => 2},
        application_stopped => #{}
    },
    ok = reactor_case:start(map_get(Group, Settings)),
    ok = py:add_path(?config(data_dir, Config)),
    ok = py:exec("import bad_protocols"),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(Case, Config) ->
    case stops_the_application(Case) of
        true -> [{listener, reactor_case:listen()} | Config];
        false -> reactor_case:begin_case(Config)
    end.

end_per_testcase(Case, Config) ->
    case stops_the_application(Case) of
        true -> gen_tcp:close(?config(listener, Config));
        false -> reactor_case:end_case(Config)
    end.

%% There is no bystander then.
stops_the_application(Case) ->
    {application_stopped, _, Cases} = lists:keyfind(application_stopped, 1, groups()),
    lists:member(Case, Cases).

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
    Line = await_logged(#{peer => Peer, level => error}),
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
    await_losses(Losses * length(Names)),
    ?assertEqual(length(Names), length(logged(#{level => error}))).

%% Not of those whose __init__ has not come to its end: they are no protocols yet.
await_losses(Losses) ->
    wait_until("every protocol is lost once", fun() ->
        #{<<"lost_once">> := Once, <<"lost_more">> := More} = reactor_case:ledger(),
        {Once, More}
    end, {Losses, 0}).

exception(Config, Callback, Name) ->
    ct:pal("~ts in ~p", [Name, Callback]),
    {ok, none} = py:call(bad_protocols, throw, [atom_to_binary(Callback), Name]),
    {Peer, Answer} = provoke(Callback, Config),
    Line = await_logged(#{peer => Peer, level => error}),
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
            Line = await_logged(#{peer => Peer, level => error}),
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
            Line = await_logged(#{peer => Peer, level => error}),
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
    ?assertMatch(#{callback := <<"data_received">>}, await_logged(#{peer => Peer, level => error})),
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
                #{callback := <<"write_ready">>, traceback := <<"BufferError", _/binary>>},
                await_logged(#{peer => peer(Port), level => error})
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

bad_arguments_raise_what_can_be_caught(Config) ->
    use("bad_protocols.Puppet"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "self.write_buffer += repr(bad_arguments(self)).encode(); answer = 'close'"),
    ?assertEqual(<<"[]">>, await_closed(Client)),
    await_ledger(1).

%% Sends code to a puppet, which must cost it its connection and be logged.
costs_the_connection(Config, Code) ->
    Client = open(?config(listener, Config)),
    {ok, Port} = inet:port(Client),
    ok = gen_tcp:send(Client, Code),
    <<>> = await_closed(Client),
    Line = await_logged(#{peer => peer(Port), level => error}),
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
                        {<<"resume">>, <<"False">>},
                        {<<"close">>, <<"ValueError">>}
                    ]
            ),
        Calls
    ),
    ?assertEqual([], logged(#{level => error})).

functions_for_driving_by_hand_refuse_bad_input(_Config) ->
    {ok, Told} = py:call(bad_protocols, drive_by_hand_badly, []),
    ?assertEqual(
        #{
            <<"nothing">> => <<"OSError">>,
            <<"served">> => <<"ValueError">>,
            <<"listener">> => <<"ValueError">>,
            <<"not ready">> => <<"ValueError">>,
            <<"hasty">> => <<"ValueError">>,
            <<"no dict">> => <<"TypeError">>,
            <<"no number">> => <<"TypeError">>,
            <<"used">> => <<"TypeError">>,
            <<"no factory">> => <<"RuntimeError">>,
            <<"None">> => <<"TypeError">>,
            <<"raises">> => <<"SystemExit">>,
            <<"close nothing">> => <<"ValueError">>,
            <<"read nothing">> => <<"ValueError">>,
            <<"write nothing">> => <<"ValueError">>
        },
        Told
    ),
    await_ledger(2),
    ?assertEqual([<<"closed">>, <<"exception">>], lists:sort(reactor_case:loss_reasons())),
    {ok, Answers} = py:call(bad_protocols, answer_by_hand, []),
    Wrong = lists:duplicate(7, <<"ValueError">>),
    ?assertEqual(Wrong ++ [<<"close">>, <<"ValueError">>], Answers),
    await_ledger(3).

protocol_that_is_false_is_found(Config) ->
    use("bad_protocols.Falsy"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, "assert reactor.get_protocol(self.fd) is self; reactor.close_connection(self.fd)"),
    <<>> = await_closed(Client),
    await_ledger(1),
    ?assertEqual([<<"closed">>], reactor_case:loss_reasons()).

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
            %% If it was parked, only the next connection shows that its descriptor is gone.
            Next = open(Listener),
            ok = reactor_case:echoes(Next, <<"next">>),
            ok = gen_tcp:close(Next),
            await_ledger(2 * Round)
        end
     || Round <- lists:seq(1, Rounds)
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
    Number = eval("bad_protocols.puppet(0).fd"),
    %% A paused one does not look at its descriptor by itself.
    ok = gen_tcp:send(Client, "os.close(self.fd); answer = 'pause'"),
    <<>> = await_closed(Client),
    Next = serve_at(Number, Spare),
    wait_until("the old one is lost", fun reactor_case:loss_reasons/0, [<<"descriptor_gone">>]),
    ?assertMatch(
        {ok, 1}, py:eval(["reactor.get_protocol(", integer_to_list(Number), ").serial"])
    ),
    ok = all_is_well(Next),
    await_ledger(2).

%% The old context cannot even hear of it while a callback holds it up.
number_of_a_closed_descriptor_may_go_to_another_context(Config) ->
    Listener = ?config(listener, Config),
    {ok, Context} = py_reactor_context:start_link(#{}),
    exec("bad_protocols.stubborn = True"),
    use("bad_protocols.Stubborn"),
    Holder = open(Listener, #{}, Context),
    use("bad_protocols.Puppet"),
    Spare = {connect(Listener), accept(Listener)},
    Client = open(Listener, #{}, Context),
    wait_until("it is parked", fun() -> map_get(parked, py_reactor_context:stats(Context)) =:= 2 end),
    ok = gen_tcp:send(Holder, <<"data">>),
    wait_until("a callback holds the context up", fun() -> is_held_up(Context) end),
    Number = eval("bad_protocols.Puppet.made[-1].fd"),
    exec(["__import__('os').close(", integer_to_list(Number), ")"]),
    <<>> = await_closed(Client),
    Next = serve_at(Number, Spare),
    await_parked(1),
    ?assertMatch(#{<<"lost_once">> := 0}, reactor_case:ledger()),
    exec("bad_protocols.stubborn = False"),
    wait_until("the old one is lost", fun reactor_case:loss_reasons/0, [<<"descriptor_gone">>]),
    ok = all_is_well(Next),
    ok = py_reactor_context:stop(Context),
    <<>> = await_closed(Holder),
    await_ledger(3).

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

port_with_the_number_of_a_closed_descriptor_is_left_alone(Config) ->
    Listener = ?config(listener, Config),
    use("bad_protocols.Puppet"),
    Client = open(Listener),
    await_parked(1),
    Number = eval("bad_protocols.puppet(0).fd"),
    {ok, none} = py:call(bad_protocols, fill_below, [Number]),
    exec(["__import__('os').close(", integer_to_list(Number), ")"]),
    Port = connect(Listener),
    {ok, none} = py:call(bad_protocols, close_no_connection, []),
    ?assertEqual({ok, Number}, inet:getfd(Port)),
    Socket = accept(Listener),
    <<>> = await_closed(Client),
    Self = self(),
    Reader = spawn_link(fun() -> Self ! {self(), gen_tcp:recv(Port, 4, 10000)} end),
    %% That a port selects a number that the VM still watches for us is reported, and rightly.
    _ = await_stolen(),
    reactor_case:forget_log(),
    exec("bad_protocols.abort_puppets()"),
    await_ledger(1),
    ok = gen_tcp:send(Socket, <<"data">>),
    receive
        {Reader, Answer} -> ?assertEqual({ok, <<"data">>}, Answer)
    end,
    [ok = gen_tcp:close(P) || P <- [Port, Socket]].

await_stolen() ->
    wait_until("the port selects the number", fun() ->
        [] =/= logged(fun(#{text := Text}) -> string:find(Text, "stealing control") =/= nomatch end)
    end).

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
    %% A descriptor that is not ours to close is still there, but two readers would share the stream.
    {ok, Number} = py:call(bad_protocols, open_pair, []),
    ok = py_reactor_context:handoff(Number, #{}),
    [
        ?assertEqual({error, already_served}, py_reactor_context:handoff(Number, #{}))
     || _ <- [1, 2, 3]
    ],
    {ok, true} = py:call(bad_protocols, pair_echoes, []),
    {ok, none} = py:call(bad_protocols, close_pair, []),
    await_ledger(2).

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
        #{nodelay => 'maybe'},
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

handoff_beyond_the_limit_is_overload(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    {ok, Context} = py_reactor_context:start_link(#{max_connections => 3}),
    Clients = [open(Listener, #{}, Context) || _ <- [1, 2, 3]],
    [
        begin
            Client = connect(Listener),
            Answer = py_reactor_context:handoff(Context, accept(Listener), #{}),
            ?assertEqual({error, overload}, Answer),
            <<>> = await_closed(Client)
        end
     || _ <- lists:seq(1, 20)
    ],
    [ok = reactor_case:echoes(Client, <<"served">>) || Client <- Clients],
    ok = gen_tcp:close(hd(Clients)),
    wait_until("there is room again", fun() ->
        maps:get(active, py_reactor_context:stats(Context)) =:= 2
    end),
    Next = open(Listener, #{}, Context),
    ok = reactor_case:echoes(Next, <<"served">>),
    ok = py_reactor_context:stop(Context),
    [<<>> = await_closed(Client) || Client <- [Next | tl(Clients)]],
    await_ledger(4).

handoffs_to_a_context_that_is_being_killed_are_answered(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    [
        begin
            {ok, Context} = py_reactor_context:start_link(#{}),
            unlink(Context),
            spawn(fun() -> end_somehow(Context, Round) end),
            Clients = [hand_over(Listener, Context) || _ <- lists:seq(1, 20)],
            [<<>> = await_closed(Client) || Client <- Clients]
        end
     || Round <- lists:seq(1, 10)
    ],
    #{<<"made">> := Made} = reactor_case:ledger(),
    await_ledger(Made).

end_somehow(Context, Round) when Round rem 2 =:= 0 -> exit(Context, kill);
end_somehow(Context, _Round) -> py_reactor_context:stop(Context).

hand_over(Listener, Context) ->
    Client = connect(Listener),
    case py_reactor_context:handoff(Context, accept(Listener), #{}) of
        ok -> ok;
        {error, no_context} -> ok
    end,
    Client.

killed_context_loses_its_own_connections_once(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    {ok, Context} = py_reactor_context:start_link(#{}),
    unlink(Context),
    Clients = [open(Listener, #{}, Context) || _ <- lists:seq(1, 100)],
    [ok = reactor_case:echoes(Client, <<"served">>) || Client <- Clients],
    exit(Context, kill),
    [<<>> = await_closed(Client) || Client <- Clients],
    await_ledger(100),
    ?assertEqual([<<"stopped">>], lists:usort(reactor_case:loss_reasons())).

killed_helpers_are_started_again(Config) ->
    use("reactor_case.Echo"),
    Client = open(?config(listener, Config)),
    Helpers = [py_reactor_log, py_reactor_pool, py_reactor_python],
    [
        begin
            Old = whereis(Name),
            exit(Old, kill),
            wait_until("it is started again", fun() ->
                New = whereis(Name),
                is_pid(New) andalso New =/= Old
            end),
            %% It is registered before it is ready.
            wait_until("a call gets through", fun() -> py:eval("1") =:= {ok, 1} end),
            ok = reactor_case:echoes(Client, <<"as before">>)
        end
     || Name <- Helpers
    ],
    %% What they do is done again.
    {ok, none} = py:call(bad_protocols, throw, [<<"data_received">>, <<"ValueError">>]),
    {Peer, ok} = provoke(data_received, Config),
    _ = await_logged(#{peer => Peer, level => error}),
    ok = gen_tcp:close(Client),
    await_ledger(2).

nest(0) -> [];
nest(Depth) -> [nest(Depth - 1)].

%%--------------------------------------------------------------------------------------------------
%% Callbacks that do not return

interrupt_ends_a_callback_that_never_returns(Config) ->
    Listener = ?config(listener, Config),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Places = places(),
    [
        begin
            {Client, Peer} = hold_up(Place, Listener, Context),
            interrupt_until(Context, fun() -> not is_held_up(Context) end),
            <<>> = await_closed(Client),
            _ = await_logged(#{peer => Peer, level => error})
        end
     || Place <- Places
    ],
    await_losses(length(Places) - 1),
    use("reactor_case.Echo"),
    Client = open(Listener, #{}, Context),
    ok = reactor_case:echoes(Client, <<"the context serves on">>),
    ok = py_reactor_context:stop(Context),
    <<>> = await_closed(Client).

stop_ends_a_callback_that_never_returns(Config) ->
    ends_a_callback_that_never_returns(Config, fun py_reactor_context:stop/1).

kill_ends_a_callback_that_never_returns(Config) ->
    ends_a_callback_that_never_returns(Config, fun(Context) ->
        unlink(Context),
        exit(Context, kill)
    end).

ends_a_callback_that_never_returns(Config, End) ->
    Listener = ?config(listener, Config),
    Places = [connection_made, data_received, write_buffer],
    [
        begin
            {ok, Context} = py_reactor_context:start_link(#{}),
            {Client, _Peer} = hold_up(Place, Listener, Context),
            End(Context),
            <<>> = await_closed(Client)
        end
     || Place <- Places
    ],
    await_ledger(length(Places)).

%% Where a protocol spins: a callback, or something of the user that is called around one.
places() ->
    ['__init__', connection_made, data_received, write_ready, eof_received, connection_lost, repr, str, write_buffer].

hold_up(Place, Listener, Context) ->
    ct:pal("never returns: ~p", [Place]),
    {ok, none} = py:call(bad_protocols, spinning, [atom_to_binary(Place)]),
    Client = connect(Listener),
    {ok, Port} = inet:port(Client),
    ok = py_reactor_context:handoff(Context, accept(Listener), #{}),
    case lists:member(Place, [eof_received, connection_lost]) of
        true -> ok = gen_tcp:shutdown(Client, write);
        false -> ok = gen_tcp:send(Client, <<"data">>)
    end,
    wait_until("a callback holds the context up", fun() -> is_held_up(Context) end),
    {Client, peer(Port)}.

is_held_up(Context) ->
    map_get(busy_ms, py_reactor_context:stats(Context)) > 50.

%% One interrupt for one callback: connection_lost may spin in its turn.
interrupt_until(Context, Fact) ->
    wait_until("it is interrupted", fun() ->
        ok = py_reactor_context:interrupt(Context),
        timer:sleep(20),
        Fact()
    end).

interrupt_hits_nothing_but_a_callback(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Client = open(Listener, #{}, Context),
    [
        begin
            ok = reactor_case:echoes(Client, <<"before">>),
            %% The worker has nothing to do now, and does not know of this afterwards.
            [ok = py_reactor_context:interrupt(Context) || _ <- lists:seq(1, 10)],
            %% Interrupts are carried out one after the other: that of a call comes last. (One that
            %% has not begun when its time is over is never begun.)
            exec("bad_protocols.interrupted = 0"),
            wait_until("the interrupts are done", fun() ->
                {error, timeout} = py:eval("bad_protocols.until_interrupted()", #{}, 10),
                eval("bad_protocols.interrupted") > 0
            end)
        end
     || _ <- lists:seq(1, 30)
    ],
    ok = reactor_case:echoes(Client, <<"after">>),
    ok = py_reactor_context:stop(Context),
    <<>> = await_closed(Client),
    await_ledger(1).

context_whose_callback_takes_no_interrupt_is_left_behind(Config) ->
    Listener = ?config(listener, Config),
    exec("bad_protocols.stubborn = True"),
    use("bad_protocols.Stubborn"),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Client = open(Listener, #{}, Context),
    ok = gen_tcp:send(Client, <<"data">>),
    wait_until("a callback holds the context up", fun() -> is_held_up(Context) end),
    ok = py_reactor_context:stop(Context),
    ?assertMatch(#{level := warning}, await_logged(#{what => worker_left_behind})),
    ?assertMatch(#{<<"lost_once">> := 0}, reactor_case:ledger()),
    exec("bad_protocols.stubborn = False"),
    <<>> = await_closed(Client),
    await_ledger(1).

connections_handed_to_a_held_up_context_are_served_later(Config) ->
    Listener = ?config(listener, Config),
    exec("bad_protocols.stubborn = True"),
    use("bad_protocols.Stubborn"),
    {ok, Context} = py_reactor_context:start_link(#{}),
    Client = open(Listener, #{}, Context),
    ok = gen_tcp:send(Client, <<"data">>),
    wait_until("a callback holds the context up", fun() -> is_held_up(Context) end),
    use("reactor_case.Echo"),
    Patient = [open(Listener, #{}, Context) || _ <- lists:seq(1, 5)],
    [ok = gen_tcp:send(P, <<"early">>) || P <- Patient],
    Impatient = [open(Listener, #{}, Context) || _ <- lists:seq(1, 5)],
    [reset(I) || I <- Impatient],
    exec("bad_protocols.stubborn = False"),
    [{ok, <<"early">>} = gen_tcp:recv(P, 5, 20000) || P <- Patient],
    ok = py_reactor_context:stop(Context),
    [<<>> = await_closed(C) || C <- [Client | Patient]],
    await_ledger(11).

sleep_in_a_callback_holds_up_its_own_context_only(Config) ->
    Listener = ?config(listener, Config),
    use("bad_protocols.Sleeper"),
    %% The bystander is in the one, the sleeper goes to the other.
    [Other] = [C || C <- contexts(), map_get(active, py_reactor_context:stats(C)) =:= 0],
    Sleeper = open(Listener, #{}, Other),
    ok = gen_tcp:send(Sleeper, <<"3.0">>),
    wait_until("a callback holds the context up", fun() -> is_held_up(Other) end),
    wait_until("the pool knows it", fun() -> map_get(busy_ms, py_reactor_context:stats(Other)) > 150 end),
    Clients = [open(Listener) || _ <- lists:seq(1, 10)],
    [ok = reactor_case:echoes(Client, <<"0.0">>) || Client <- Clients],
    %% All that while it slept.
    ?assert(is_held_up(Other)),
    {ok, <<"3.0">>} = gen_tcp:recv(Sleeper, 3, 20000),
    [ok = gen_tcp:close(Client) || Client <- [Sleeper | Clients]],
    await_ledger(11).

handoff_while_all_contexts_are_held_up_does_not_wait(Config) ->
    Listener = ?config(listener, Config),
    exec("bad_protocols.stubborn = True"),
    use("bad_protocols.Stubborn"),
    Holders = [open(Listener, #{}, Context) || Context <- contexts()],
    [ok = gen_tcp:send(Client, <<"data">>) || Client <- Holders],
    wait_until("all are held up", fun() -> lists:all(fun is_held_up/1, contexts()) end),
    use("reactor_case.Echo"),
    Clients = [open(Listener) || _ <- lists:seq(1, 4)],
    [ok = gen_tcp:send(Client, <<"early">>) || Client <- Clients],
    ?assert(lists:all(fun is_held_up/1, contexts())),
    exec("bad_protocols.stubborn = False"),
    [{ok, <<"early">>} = gen_tcp:recv(Client, 5, 20000) || Client <- Clients],
    [ok = gen_tcp:close(Client) || Client <- Holders ++ Clients],
    await_ledger(6).

%%--------------------------------------------------------------------------------------------------
%% Peers

reset_before_the_handoff_is_one_loss_at_most(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    [
        begin
            Client = connect(Listener),
            Round rem 2 =:= 0 andalso gen_tcp:send(Client, <<"last words">>),
            Early = Round rem 4 < 2,
            Early andalso reset(Client),
            Socket = accept(Listener),
            Early orelse reset(Client),
            case handoff(Socket) of
                ok -> ok;
                {error, badf} -> ok
            end
        end
     || Round <- lists:seq(1, 40)
    ],
    #{<<"made">> := Made} = reactor_case:ledger(),
    await_ledger(Made),
    ?assertEqual([], logged(#{level => error})).

reset_right_after_the_handoff_is_one_loss(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    [
        begin
            Client = open(Listener),
            Round rem 2 =:= 0 andalso gen_tcp:send(Client, <<"last words">>),
            reset(Client)
        end
     || Round <- lists:seq(1, 40)
    ],
    await_ledger(40),
    ?assertEqual([<<"reset">>], lists:usort(reactor_case:loss_reasons())),
    ?assertEqual([], logged(#{level => error})).

reset_while_parked_is_one_loss(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    Clients = [open(Listener) || _ <- lists:seq(1, 20)],
    await_parked(20),
    [reset(Client) || Client <- Clients],
    await_ledger(20),
    ?assertEqual([<<"reset">>], lists:usort(reactor_case:loss_reasons())).

reset_while_paused_is_one_loss(Config) ->
    use("bad_protocols.Puppet"),
    Listener = ?config(listener, Config),
    [
        begin
            Client = open(Listener),
            ok = gen_tcp:send(Client, ["self.paused = True; answer = 'pause'", lists:duplicate(Size, $\s)]),
            wait_until("it is paused", fun() ->
                eval("getattr(bad_protocols.Puppet.made[-1], 'paused', False)")
            end),
            %% Some have sent what nobody reads.
            Size > 0 andalso gen_tcp:send(Client, <<"unread">>),
            reset(Client),
            await_ledger(Made)
        end
     || {Made, Size} <- lists:zip(lists:seq(1, 6), [0, 1, 0, 1, 0, 1])
    ],
    ?assertEqual([<<"peer_gone">>], lists:usort(reactor_case:loss_reasons())).

reset_while_a_write_is_pending_is_one_loss(Config) ->
    Listener = ?config(listener, Config),
    [
        begin
            use(["bad_protocols.", Class]),
            Client = open(Listener),
            ok = gen_tcp:send(Client, <<"30000000">>),
            {ok, _} = gen_tcp:recv(Client, 100000, 20000),
            await_stalled(),
            reset(Client),
            await_ledger(Made)
        end
     || {Made, Class} <- lists:zip(lists:seq(1, 6), ["Flood", "Letters", "Flood", "Letters", "Flood", "Letters"])
    ],
    ?assertEqual([<<"reset">>], lists:usort(reactor_case:loss_reasons())),
    ?assertEqual([], logged(#{level => error})).

reset_while_closing_is_one_loss(Config) ->
    Listener = ?config(listener, Config),
    use("bad_protocols.Puppet"),
    [
        begin
            Client = open(Listener),
            ok = gen_tcp:send(Client, "self.write_buffer += bytes(30_000_000); answer = 'close'"),
            {ok, _} = gen_tcp:recv(Client, 100000, 20000),
            await_stalled(),
            reset(Client),
            await_ledger(Made)
        end
     || Made <- [1, 2, 3]
    ],
    ?assertEqual([<<"reset">>], lists:usort(reactor_case:loss_reasons())).

%% Waits until the kernel takes no more for anybody but the bystander: all others are parked or wait.
await_stalled() ->
    Sizes = "[len(p.write_buffer) for p in reactor._registry.protocols.values() if hasattr(p, 'serial')]",
    wait_until("the kernel takes no more", fun() ->
        Before = eval(Sizes),
        timer:sleep(30),
        Before =:= eval(Sizes) andalso lists:max(Before) > 0
    end).

reset_of_a_connection_that_never_writes_is_one_loss(Config) ->
    use("bad_protocols.Idle"),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, <<"data">>),
    Before = stat(callbacks),
    wait_until("it asks for writing", fun() -> stat(callbacks) > Before + 1000 end),
    reset(Client),
    await_ledger(1).

exception_after_a_reset_is_logged_with_the_peer(Config) ->
    {ok, none} = py:call(bad_protocols, throw, [<<"connection_lost">>, <<"ValueError">>]),
    Client = open(?config(listener, Config)),
    {ok, Port} = inet:port(Client),
    reset(Client),
    ?assertMatch(#{callback := <<"connection_lost">>}, await_logged(#{peer => peer(Port), level => error})),
    await_ledger(1).

half_close_delivers_what_is_pending(Config) ->
    Listener = ?config(listener, Config),
    Bytes = 20000000,
    [
        begin
            use(["bad_protocols.", Class]),
            Client = open(Listener),
            ok = gen_tcp:send(Client, integer_to_binary(Bytes)),
            ok = gen_tcp:shutdown(Client, write),
            await_stalled(),
            check_pattern(Client, Bytes div 251 * 251),
            <<>> = await_closed(Client)
        end
     || Class <- ["Flood", "Letters"]
    ],
    await_ledger(2),
    ?assertEqual([<<"eof">>], lists:usort(reactor_case:loss_reasons())).

flood_of_silent_connections_leaves_nothing_behind(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    Clients = [open(Listener) || _ <- lists:seq(1, 1000)],
    await_parked(1000),
    Endings = [fun gen_tcp:close/1, fun reactor_case:reset/1, fun(C) -> gen_tcp:shutdown(C, write) end],
    [
        (lists:nth(N rem 3 + 1, Endings))(Client)
     || {N, Client} <- lists:zip(lists:seq(1, 1000), Clients)
    ],
    await_ledger(1000),
    [gen_tcp:close(Client) || Client <- Clients],
    ?assertEqual([], logged(#{level => error})).

thousand_connections_reset_at_once_leave_nothing_behind(Config) ->
    use("reactor_case.Echo"),
    Listener = ?config(listener, Config),
    Self = self(),
    Crowds = [
        spawn_link(fun() ->
            Clients = [connect(Listener) || _ <- lists:seq(1, 100)],
            [gen_tcp:send(Client, <<"data">>) || Client <- Clients],
            receive
                go -> [reset(Client) || Client <- Clients]
            end,
            Self ! {reset, self()}
        end)
     || _ <- lists:seq(1, 10)
    ],
    Answers = [handoff(accept(Listener)) || _ <- lists:seq(1, 900)],
    [Crowd ! go || Crowd <- Crowds],
    More = [handoff(accept(Listener)) || _ <- lists:seq(1, 100)],
    [
        receive
            {reset, Crowd} -> ok
        end
     || Crowd <- Crowds
    ],
    ?assertEqual([ok], lists:usort(Answers ++ More)),
    await_ledger(1000),
    ?assertEqual([], logged(#{level => error})).

%%--------------------------------------------------------------------------------------------------
%% Large writes and other threads

large_write_to_a_slow_reader_takes_no_memory_but_its_buffer(Config) ->
    use("bad_protocols.Flood"),
    Before = reactor_case:memory_kb(),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, <<"200000000">>),
    check_pattern(Client, 251 * 1000),
    await_stalled(),
    %% The buffer, and half as much for the rest of the node.
    ?assert(reactor_case:memory_kb() - Before < 300000),
    check_pattern(Client, 251, 251 * 100000),
    ?assert(reactor_case:memory_kb() - Before < 300000),
    reset(Client),
    await_ledger(1),
    wait_until("its memory is back", fun() -> reactor_case:memory_kb() - Before < 50000 end).

large_write_arrives_whole(Config) ->
    large_write_arrives(Config, "Flood", 200000000).

large_write_by_a_write_ready_of_its_own_arrives_whole(Config) ->
    large_write_arrives(Config, "Letters", 200000000).

large_write_arrives(Config, Class, Bytes) ->
    use(["bad_protocols.", Class]),
    Client = open(?config(listener, Config)),
    ok = gen_tcp:send(Client, integer_to_binary(Bytes)),
    check_pattern(Client, Bytes div 251 * 251),
    ok = gen_tcp:send(Client, <<"2510">>),
    check_pattern(Client, 2510),
    ok = gen_tcp:close(Client),
    await_ledger(1).

large_write_to_the_kernel_takes_what_it_takes(Config) ->
    use("bad_protocols.Direct"),
    Listener = ?config(listener, Config),
    Kinds = [<<"bytes">>, <<"bytearray">>, <<"memoryview">>],
    [
        begin
            Client = open(Listener),
            ok = gen_tcp:send(Client, Kind),
            wait_until("the kernel takes some", fun() -> taken() > 0 end),
            Taken = taken(),
            ?assert(Taken < 200000000),
            {ok, Data} = gen_tcp:recv(Client, Taken, 20000),
            ?assertEqual(Taken, byte_size(Data)),
            ok = gen_tcp:close(Client),
            await_ledger(Made)
        end
     || {Made, Kind} <- lists:zip([1, 2, 3], Kinds)
    ].

taken() ->
    eval("max([p.client_info.get('taken', 0) for p in list(reactor._registry.protocols.values())])").

threads_may_write_while_the_connection_ends(Config) ->
    use("bad_protocols.Writers"),
    Listener = ?config(listener, Config),
    Endings = [
        fun gen_tcp:close/1,
        fun reactor_case:reset/1,
        fun(C) -> gen_tcp:send(C, <<"close">>) end,
        fun(C) -> gen_tcp:send(C, <<"abort">>) end,
        fun(C) -> gen_tcp:send(C, <<"nonsense">>) end,
        fun(C) -> gen_tcp:shutdown(C, write) end
    ],
    [
        begin
            Client = open(Listener),
            {ok, _} = gen_tcp:recv(Client, 200000, 20000),
            End(Client),
            drain(Client),
            await_ledger(Made),
            wait_until("its threads end", fun() -> eval("bad_protocols.Writers.running") end, 0)
        end
     || {Made, End} <- lists:zip(lists:seq(1, 18), Endings ++ Endings ++ Endings)
    ].

drain(Client) ->
    case gen_tcp:recv(Client, 0, 20000) of
        {ok, _} -> drain(Client);
        {error, Reason} when Reason =/= timeout -> gen_tcp:close(Client)
    end.

%% Receives so many bytes of the pattern 0, 1, ... 250, 0, 1, ...
check_pattern(Client, Bytes) ->
    check_pattern(Client, 251 * 1000, Bytes).

check_pattern(_Client, _ChunkBytes, 0) ->
    ok;
check_pattern(Client, ChunkBytes, Bytes) ->
    Size = min(ChunkBytes, Bytes),
    {ok, Data} = gen_tcp:recv(Client, Size, 30000),
    Pattern = binary:copy(list_to_binary(lists:seq(0, 250)), Size div 251),
    case Data of
        Pattern -> check_pattern(Client, ChunkBytes, Bytes - Size);
        _ -> error({wrong_bytes, {left, Bytes}})
    end.

%%--------------------------------------------------------------------------------------------------
%% The application stops

handoff_with_the_application_stopped_closes(Config) ->
    Listener = ?config(listener, Config),
    [Context] = contexts(),
    ok = application:stop(py_reactor),
    Descriptors = length(element(2, file:list_dir("/proc/self/fd"))),
    [
        begin
            Client = connect(Listener),
            Socket = accept(Listener),
            ?assertEqual({error, no_context}, HandOver(Socket)),
            <<>> = await_closed(Client)
        end
     || HandOver <- [
            fun(Socket) -> handoff(Socket) end,
            fun(Socket) -> py_reactor_context:handoff(Socket, #{}) end,
            fun(Socket) -> py_reactor_context:handoff(Context, Socket, #{}) end,
            fun(Socket) -> py_reactor_context:handoff(nobody, Socket, #{}) end
        ]
    ],
    ?assertEqual({error, no_context}, py_reactor_context:handoff(99999, #{})),
    ?assertEqual({error, no_context}, py_reactor_context:stats(Context)),
    ?assertEqual({error, no_context}, py_reactor_context:interrupt(Context)),
    wait_until("nothing is left open", fun() ->
        length(element(2, file:list_dir("/proc/self/fd"))) =< Descriptors
    end),
    {ok, _} = application:ensure_all_started(py_reactor).

handoffs_while_the_application_stops_are_answered(Config) ->
    Listener = ?config(listener, Config),
    [
        begin
            ok = py:exec("reactor_case.ledger.forget()"),
            use("reactor_case.Echo"),
            Self = self(),
            spawn_link(fun() -> Self ! {stopped, application:stop(py_reactor)} end),
            Clients = hand_over_until_stopped(Listener, []),
            [<<>> = await_closed(Client) || Client <- Clients],
            {ok, _} = application:ensure_all_started(py_reactor),
            #{<<"made">> := Made} = reactor_case:ledger(),
            await_ledger(Made)
        end
     || _ <- lists:seq(1, 10)
    ].

hand_over_until_stopped(Listener, Clients) ->
    receive
        {stopped, ok} -> Clients
    after 0 ->
        Client = connect(Listener),
        case handoff(accept(Listener)) of
            ok -> ok;
            {error, no_context} -> ok
        end,
        hand_over_until_stopped(Listener, [Client | Clients])
    end.

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

%% A protocol that was never served makes the handoff fail, with the traceback that is logged. (On a
%% machine that is very busy the handoff does not wait for that.)
check_answer(ok, _Line) ->
    ok;
check_answer(Answer, #{callback := Callback, traceback := Traceback}) when
    Callback =:= <<"factory">>; Callback =:= <<"connection_made">>
->
    ?assertEqual({error, {protocol, Traceback}}, Answer).

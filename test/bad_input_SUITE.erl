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
        exception_in_connection_lost_is_logged
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

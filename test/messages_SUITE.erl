%%% Messages both ways: to protocols, past them to their peers, and about their end; and the handles by
%%% which Erlang and Python know a connection.
%%%
%%% Every case runs twice, as in reactor_SUITE: with connections that linger with their worker, and with
%%% connections that are parked in the BEAM after each event.
-module(messages_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_closed/1, await_logged/1, reset/1, wait_until/2, wait_until/3]).
-import(told, [exec/1, eval/1, eval/2, next/0, next/1, nothing/0]).
-import(py_reactor_connection, [send/2, push/2, close/1]).

-define(PATIENCE_MS, 20000).
%% As docs/protocols.md has it.
-define(HIGH_WATER, 65536).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, lingering}, {group, parked_at_once}, stopping_the_application_tells_every_monitor].

groups() ->
    told:groups(cases()).

cases() ->
    told:cases(?MODULE) -- [stopping_the_application_tells_every_monitor].

init_per_group(Group, Config) ->
    told:start(#{linger_ms => told:linger_ms(Group)}),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(stopping_the_application_tells_every_monitor, Config) ->
    Config;
init_per_testcase(_Case, Config) ->
    told:begin_case(Config).

end_per_testcase(stopping_the_application_tells_every_monitor, _Config) ->
    reactor_case:stop();
end_per_testcase(_Case, Config) ->
    told:end_case(Config).

%%--------------------------------------------------------------------------------------------------
%% Messages to protocols

a_message_arrives_as_the_table_of_conversions_says(Config) ->
    protocol("def message_received(self, message):\n    tell('got', repr(message), message)\n"),
    {Client, Connection} = connected(Config),
    [
        begin
            ok = send(Connection, Term),
            {Repr, Back} = next(<<"got">>),
            ?assertEqual(iolist_to_binary(Python), Repr),
            ?assertEqual(Again, Back)
        end
     || {Term, Python, Again} <- [
            {hello, "'hello'", <<"hello">>},
            {none, "None", none},
            {#{a => [1, 2.5, {true, <<"x">>}]}, "{'a': [1, 2.5, (True, 'x')]}", #{
                <<"a">> => [1, 2.5, {true, <<"x">>}]
            }},
            {{bytes, <<255>>}, "b'\\xff'", <<255>>},
            {1 bsl 200, integer_to_list(1 bsl 200), 1 bsl 200},
            {[], "[]", []}
        ]
    ],
    Self = self(),
    ok = send(Connection, {reply_to, Self}),
    {_, {<<"reply_to">>, Self}} = next(<<"got">>),
    end_of(Client).

messages_of_one_sender_keep_their_order(Config) ->
    protocol(collects_messages()),
    {Client, Connection} = connected(Config),
    Numbers = lists:seq(1, 20_000),
    [ok = insist(fun() -> send(Connection, Number) end) || Number <- Numbers],
    wait_until("all are there", fun() -> eval("len(it.messages)") end, 20_000),
    ?assert(eval("it.messages == list(range(1, 20_001))")),
    end_of(Client).

messages_of_many_senders_keep_the_order_of_each(Config) ->
    protocol(collects_messages()),
    {Client, Connection} = connected(Config),
    together(40, fun(Sender) ->
        [ok = insist(fun() -> send(Connection, {Sender, Number}) end) || Number <- lists:seq(1, 500)]
    end),
    wait_until("all are there", fun() -> eval("len(it.messages)") end, 20_000),
    ?assert(
        eval(
            "all([n for s, n in it.messages if s == sender] == list(range(1, 501))"
            " for sender in range(1, 41))"
        )
    ),
    end_of(Client).

what_was_taken_of_a_flood_arrives_and_the_rest_is_refused(Config) ->
    protocol(
        [
            collects_messages(),
            "def data_received(self, data):\n"
            "    tell('busy')\n"
            "    globals()['go'].wait()\n"
            "    tell('free')\n"
        ]
    ),
    exec("go = threading.Event()"),
    {Client, Connection} = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    {} = next(<<"busy">>),
    Answers = [{send(Connection, Number), Number} || Number <- lists:seq(1, 100_000)],
    Taken = [Number || {ok, Number} <- Answers],
    ?assertEqual(100_000 - length(Taken), length([N || {{error, overload}, N} <- Answers])),
    %% Some room there is, and it has an end.
    ?assert(length(Taken) >= 1000),
    ?assert(length(Taken) =< 10_000),
    none = eval("go.set()"),
    {} = next(<<"free">>),
    wait_until("what was taken is there", fun() -> eval("len(it.messages)") end, length(Taken)),
    ?assertEqual(Taken, eval("it.messages")),
    nothing(),
    ok = send(Connection, after_the_flood),
    wait_until("it goes on", fun() -> eval("it.messages[-1] == 'after_the_flood'") end),
    end_of(Client).

a_flood_from_many_processes_loses_nothing_that_was_taken(Config) ->
    protocol(collects_messages()),
    {Client, Connection} = connected(Config),
    Answers = lists:append(
        together(20, fun(Sender) ->
            [{send(Connection, [Sender, N]), [Sender, N]} || N <- lists:seq(1, 5000)]
        end)
    ),
    Taken = [Message || {ok, Message} <- Answers],
    [] = [Other || {Other, _} <- Answers, Other =/= ok, Other =/= {error, overload}],
    wait_until("what was taken is there", fun() -> eval("len(it.messages)") end, length(Taken)),
    ?assert(eval("sorted(it.messages) == sorted(taken)", #{taken => Taken})),
    end_of(Client).

messages_do_not_starve_the_peers(Config) ->
    protocol(
        [
            "def data_received(self, data):\n"
            "    self.write_buffer += data\n",
            collects_messages()
        ]
    ),
    {Client, Connection} = connected(Config),
    Flood = spawn_link(fun Flood() ->
        _ = send(Connection, x),
        Flood()
    end),
    [reactor_case:echoes(Client, rand:bytes(Size)) || Size <- [1, 1000, 100_000, 1, 1, 1]],
    unlink(Flood),
    exit(Flood, kill),
    end_of(Client).

a_message_reaches_a_paused_connection_and_leaves_it_paused(Config) ->
    [
        begin
            protocol([
                "def message_received(self, message):\n"
                "    tell('message', message)\n"
                "    return 'continue'\n"
                "def connection_made(self, fd, client_info):\n"
                "    super().connection_made(fd, client_info)\n"
                "    return ", Pause, "\n"
            ]),
            {Client, Connection} = connected(Config),
            ok = gen_tcp:send(Client, "unread"),
            ok = send(Connection, 1),
            {1} = next(<<"message">>),
            ok = send(Connection, 2),
            {2} = next(<<"message">>),
            nothing(),
            none = eval(Resume),
            {<<"unread">>} = next(<<"data">>),
            end_of(Client)
        end
     || {Pause, Resume} <- [
            {"'pause'", "reactor.resume(it) and None"},
            {"self.pause_reading() or 'continue'", "it.resume_reading()"}
        ]
    ].

a_message_reaches_a_connection_that_is_parked(Config) ->
    protocol("def message_received(self, message):\n    tell('message', message)\n"),
    {Client, Connection} = connected(Config),
    [
        begin
            await_parked(),
            ok = send(Connection, Number),
            {Number} = next(<<"message">>)
        end
     || Number <- [1, 2, 3]
    ],
    await_parked(),
    ok = gen_tcp:send(Client, "data"),
    {<<"data">>} = next(<<"data">>),
    end_of(Client).

no_message_reaches_a_connection_that_closes(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += bytes(30_000_000)\n"
        "    return 'close'\n"
        "def message_received(self, message):\n"
        "    tell('message')\n"
    ),
    {Client, Connection} = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    wait_until("it closes", fun() -> send(Connection, x) =:= {error, closed} end),
    told_first(<<"message">>),
    ?assertEqual({error, closed}, push(Connection, "x")),
    ?assertEqual({error, closed}, close(Connection)),
    ?assertEqual(30_000_000, byte_size(await_closed(Client))),
    {<<"closed">>} = next(<<"lost">>),
    ?assertEqual({error, closed}, send(Connection, x)),
    nothing().

%% Those that were told before, if any.
told_first(Word) ->
    receive
        Message when element(1, Message) =:= Word -> told_first(Word)
    after 0 -> ok
    end.

a_message_waits_for_the_end_of_connection_made(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    go.wait()\n"
        "    tell('really made')\n"
        "def message_received(self, message):\n"
        "    tell('message', message)\n"
        "    self.write_buffer += b'answer'\n"
    ),
    exec("go = threading.Event()"),
    Case = self(),
    Opener = spawn_link(fun() ->
        Client = reactor_case:open(?config(listener, Config)),
        ok = gen_tcp:controlling_process(Client, Case),
        Case ! {self(), Client}
    end),
    {_} = next(<<"made">>),
    {Connection} = next(<<"connection">>),
    ok = send(Connection, early),
    ok = push(Connection, "pushed"),
    none = eval("go.set()"),
    {} = next(<<"really made">>),
    {<<"early">>} = next(<<"message">>),
    Client = receive {Opener, Socket} -> Socket end,
    {ok, Both} = gen_tcp:recv(Client, 12, ?PATIENCE_MS),
    ?assertMatch({match, _}, re:run(Both, "^(pushedanswer|answerpushed)$")),
    end_of(Client).

a_connection_that_was_never_made_is_closed_to_those_who_know_it(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    raise LookupError('not today')\n"
    ),
    Client = reactor_case:connect(?config(listener, Config)),
    {error, {protocol, _}} = reactor_case:handoff(reactor_case:accept(?config(listener, Config))),
    {_} = next(<<"made">>),
    {Connection} = next(<<"connection">>),
    {<<"exception">>} = next(<<"lost">>),
    ?assertEqual({error, closed}, send(Connection, x)),
    ?assertEqual({error, closed}, push(Connection, "x")),
    ?assertEqual({error, closed}, close(Connection)),
    Monitor = py_reactor_connection:monitor(Connection),
    ?assertEqual(noproc, reason_of(Monitor, Connection)),
    _ = await_closed(Client).

large_messages_arrive_whole(Config) ->
    protocol(
        "def message_received(self, message):\n"
        "    import hashlib\n"
        "    tell('got', len(message), hashlib.sha256(message).digest())\n"
    ),
    {Client, Connection} = connected(Config),
    [
        begin
            Bytes = rand:bytes(Size),
            ok = send(Connection, {bytes, Bytes}),
            ?assertEqual({Size, crypto:hash(sha256, Bytes)}, next(<<"got">>))
        end
     || Size <- [0, 65_535, 65_536, 1_000_000, 100_000_000]
    ],
    protocol("def message_received(self, message):\n    tell('sum', len(message), sum(message))\n"),
    {Other, OtherConnection} = connected(Config),
    ok = send(OtherConnection, lists:seq(1, 1_000_000)),
    ?assertEqual({1_000_000, 500_000_500_000}, next(<<"sum">>)),
    [end_of(Each) || Each <- [Client, Other]].

a_term_that_cannot_cross_is_refused_at_the_door(Config) ->
    protocol("def message_received(self, message):\n    tell('message', message)\n"),
    {Client, Connection} = connected(Config),
    Port = hd(erlang:ports()),
    Deep = lists:foldl(fun(_, Inner) -> [Inner] end, [], lists:seq(1, 1000)),
    [
        begin
            {error, {bad_message, Why}} = send(Connection, Term),
            ?assert(is_binary(Why) andalso byte_size(Why) > 5)
        end
     || Bad <- [fun() -> ok end, fun lists:map/2, [1 | 2], Port, <<1:3>>, <<255>>, Deep],
        Term <- [Bad, {ok, [Bad]}, #{key => Bad}, [lists:seq(1, 100_000), Bad]]
    ],
    nothing(),
    ok = send(Connection, fine),
    {<<"fine">>} = next(<<"message">>),
    end_of(Client).

a_message_that_python_cannot_hold_costs_the_message_only(Config) ->
    protocol("def message_received(self, message):\n    tell('message', message)\n"),
    {Client, Connection} = connected(Config),
    [
        begin
            reactor_case:forget_log(),
            ok = send(Connection, Term),
            await_logged(#{
                level => error, callback => <<"message_received">>, protocol => <<"__main__.P">>
            })
        end
     || Term <- [#{a => 1, <<"a">> => 2}, #{[1] => x}, #{1 => x, 1.0 => y}]
    ],
    ok = send(Connection, fine),
    {<<"fine">>} = next(<<"message">>),
    nothing(),
    end_of(Client).

message_received_may_answer_every_action(Config) ->
    protocol(
        "def message_received(self, answer):\n"
        "    tell('got')\n"
        "    self.write_buffer += b'late'\n"
        "    return answer if answer != 'raise' else 1 / 0\n"
    ),
    [
        begin
            {Client, Connection} = connected(Config),
            ok = send(Connection, Answer),
            {} = next(<<"got">>),
            Takes(Client),
            ok = gen_tcp:send(Client, "x"),
            Then(Client),
            end_of(Client)
        end
     || {Answer, Takes, Then} <- [
            {none, fun takes_late/1, fun reads/1},
            {write_pending, fun takes_late/1, fun reads/1},
            {continue, fun takes_nothing/1, fun reads/1},
            {read_pending, fun takes_nothing/1, fun reads/1},
            {pause, fun takes_nothing/1, fun(Client) ->
                nothing(),
                ?assert(eval("reactor.resume(it, 'write_pending')")),
                takes_late(Client),
                reads(Client)
            end}
        ]
    ],
    [
        begin
            {Client, Connection} = connected(Config),
            ok = send(Connection, Answer),
            {} = next(<<"got">>),
            ?assertEqual(Last, await_closed(Client)),
            {Reason} = next(<<"lost">>)
        end
     || {Answer, Last, Reason} <- [
            {close, <<"late">>, <<"closed">>},
            {abort, <<>>, <<"aborted">>},
            {raise, <<>>, <<"exception">>},
            {nonsense, <<>>, <<"exception">>},
            {17, <<>>, <<"exception">>}
        ]
    ],
    await_logged(#{level => error, callback => <<"message_received">>, protocol => <<"__main__.P">>}).

takes_late(Client) ->
    {ok, <<"late">>} = gen_tcp:recv(Client, 4, ?PATIENCE_MS).

takes_nothing(Client) ->
    nothing(),
    {error, timeout} = gen_tcp:recv(Client, 0, 0).

reads(_Client) ->
    {<<"x">>} = next(<<"data">>).

a_protocol_that_takes_no_messages_says_so_and_lives_on(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    ok = send(Connection, nobody_listens),
    #{python := Text} = await_logged(#{level => warning, logger => <<"erlang.reactor">>}),
    {ok, {_, Port}} = inet:sockname(Client),
    Peer = io_lib:format("('127.0.0.1', ~b)", [Port]),
    Wanted = ["__main__.P of ", Peer, " takes no messages, but got a str"],
    ?assertEqual(iolist_to_binary(Wanted), Text),
    ok = gen_tcp:send(Client, "x"),
    reads(Client),
    end_of(Client).

a_message_may_be_sent_from_a_callback_to_its_own_connection(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    erlang.send('told', (erlang.Atom('bounce'), self.connection, data))\n"
        "def message_received(self, message):\n"
        "    tell('message', message)\n"
    ),
    {Client, Connection} = connected(Config),
    ok = gen_tcp:send(Client, "ping"),
    receive
        {bounce, Connection, Data} -> ok = send(Connection, {bytes, Data})
    end,
    {<<"ping">>} = next(<<"message">>),
    end_of(Client).

collects_messages() ->
    "def message_received(self, message):\n"
    "    vars(self).setdefault('messages', []).append(message)\n"
    "    return 'continue'\n".

%%--------------------------------------------------------------------------------------------------
%% Pushed bytes

pushed_bytes_reach_the_peer_in_order_and_without_python(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    Callbacks = callbacks(),
    [ok = insist(fun() -> push(Connection, <<Number:32>>) end) || Number <- lists:seq(1, 10_000)],
    {ok, Bytes} = gen_tcp:recv(Client, 40_000, ?PATIENCE_MS),
    ?assertEqual(lists:seq(1, 10_000), [Number || <<Number:32>> <= Bytes]),
    %% The bystander has its own.
    ?assertEqual([], eval("it.called")),
    ?assert(callbacks() >= Callbacks),
    end_of(Client).

iodata_of_every_form_can_be_pushed(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    [
        begin
            ok = push(Connection, Data),
            Bytes = iolist_to_binary(Data),
            [{ok, Bytes} = gen_tcp:recv(Client, byte_size(Bytes), ?PATIENCE_MS) || Bytes =/= <<>>]
        end
     || Data <- [
            <<"binary">>, "string", [<<"li">>, [$s, [], "t"]], [$i, "mproper" | <<" tail">>],
            <<>>, [], [[], <<>>], [0, 255], binary:part(<<"a part">>, 2, 4)
        ]
    ],
    [
        ?assertError(badarg, push(Connection, Bad))
     || Bad <- [atom, 1, {}, [256], [-1], [a], <<1:3>>, [<<1:3>>], #{}]
    ],
    {error, timeout} = gen_tcp:recv(Client, 0, 0),
    end_of(Client).

what_is_larger_than_the_high_water_mark_is_too_large(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    Largest = rand:bytes(?HIGH_WATER),
    ?assertEqual({error, too_large}, push(Connection, [Largest, 0])),
    ?assertEqual({error, too_large}, push(Connection, binary:copy(Largest, 100))),
    ok = push(Connection, Largest),
    {ok, Largest} = gen_tcp:recv(Client, ?HIGH_WATER, ?PATIENCE_MS),
    end_of(Client).

a_reader_that_keeps_up_is_never_too_slow(Config) ->
    [
        begin
            protocol(["def connection_made(self, fd, client_info):\n"
                "    self.set_slow_consumer(", Policy, ")\n"
                "    return super().connection_made(fd, client_info)\n"]),
            {Client, Connection} = connected(Config),
            Drops = counter(drops),
            Message = rand:bytes(Size),
            %% As many as the kernel takes for a peer that has read nothing yet.
            [
                begin
                    [ok = insist(fun() -> push(Connection, Message) end) || _ <- lists:seq(1, Times)],
                    {ok, All} = gen_tcp:recv(Client, Size * Times, ?PATIENCE_MS),
                    ?assert(All =:= binary:copy(Message, Times))
                end
             || _ <- lists:seq(1, 20)
            ],
            ?assertEqual(0, counter(drops) - Drops),
            end_of(Client)
        end
     || Policy <- ["'buffer', 1024", "'buffer', 1", "'disconnect'"],
        {Size, Times} <- [{10, 2000}, {1000, 200}, {60_000, 5}]
    ].

nothing_comes_between_the_parts_of_a_message(Config) ->
    [
        begin
            protocol([frames_of_its_own(), Write]),
            {Client, Connection} = connected(Config),
            none = eval("it.set_slow_consumer('drop_new')"),
            Case = self(),
            Reader = spawn_link(fun() ->
                receive go -> ok end,
                Case ! {self(), slow_frames(Client, [])}
            end),
            ok = gen_tcp:controlling_process(Client, Reader),
            Reader ! go,
            Writer = spawn_link(fun() ->
                [send(Connection, {write, N}) || N <- lists:seq(1, 300), tick()]
            end),
            Taken = lists:append(
                together(8, fun(Sender) ->
                    [
                        {Sender, N}
                     || N <- lists:seq(1, 200), ok =:= push(Connection, frame(Sender, N)), tick()
                    ]
                end)
            ),
            await_end(Writer),
            ok = insist(fun() -> send(Connection, the_end) end),
            Frames = receive {Reader, Got} -> Got end,
            %% What was taken arrived, in the order of each sender; the protocol is sender 0.
            [
                ?assertEqual(
                    [N || {S, N} <- Taken, S =:= Sender], [N || {S, N} <- Frames, S =:= Sender]
                )
             || Sender <- lists:seq(1, 8)
            ],
            Own = [N || {0, N} <- Frames],
            ?assertEqual(lists:sort(Own), Own),
            ?assert(length(Own) > 100),
            ?assert(length(Taken) > 50),
            {<<"closed">>} = next(<<"lost">>)
        end
     || Write <- ["", own_write_ready()]
    ].

tick() ->
    _ = rand:uniform(4) =:= 1 andalso timer:sleep(1),
    true.

%% A message that tells its sender, its number and its size, and is filled with what follows from them.
frame(Sender, Number) ->
    Size = 1 + (Number * 7919 + Sender * 104_729) rem 60_000,
    [<<Sender:8, Number:32, Size:32>>, filling(Sender, Number, Size)].

filling(Sender, Number, Size) ->
    binary:part(binary:copy(<<Sender:8, Number:32, 16#5a>>, Size div 6 + 1), 0, Size).

%% Reads whole frames, with rests, to the end of the stream.
slow_frames(Client, Frames) ->
    case gen_tcp:recv(Client, 9, ?PATIENCE_MS) of
        {ok, <<Sender:8, Number:32, Size:32>>} ->
            Wanted = filling(Sender, Number, Size),
            {ok, Filling} = gen_tcp:recv(Client, Size, ?PATIENCE_MS),
            true = Filling =:= Wanted,
            tick(),
            slow_frames(Client, [{Sender, Number} | Frames]);
        {error, closed} ->
            ok = gen_tcp:close(Client),
            lists:reverse(Frames)
    end.

%% Writes frames as told by messages; the last word closes.
frames_of_its_own() ->
    "def message_received(self, message):\n"
    "    if message == 'the_end':\n"
    "        return 'close'\n"
    "    number, size = message[1], 1 + message[1] * 7919 % 60_000\n"
    "    filling = (b'\\0' + number.to_bytes(4, 'big') + b'\\x5a') * (size // 6 + 1)\n"
    "    head = b'\\0' + number.to_bytes(4, 'big') + size.to_bytes(4, 'big')\n"
    "    self.write_buffer += head + filling[:size]\n"
    "    if message[1] % 2 and not self.writing:\n"
    "        # By hand, as far as that goes.\n"
    "        del self.write_buffer[:self.write(self.write_buffer)]\n"
    "    self.writing = len(self.write_buffer) > 0\n"
    "    return 'write_pending' if self.write_buffer else 'continue'\n"
    "writing = False\n".

own_write_ready() ->
    "def write_ready(self):\n"
    "    del self.write_buffer[:self.write(self.write_buffer)]\n"
    "    self.writing = len(self.write_buffer) > 0\n"
    "    return 'continue' if self.write_buffer else 'read_pending'\n".

what_is_pushed_before_a_close_is_delivered(Config) ->
    protocol("pass\n"),
    [
        begin
            {Client, Connection} = connected(Config),
            Messages = [rand:bytes(rand:uniform(Size)) || _ <- lists:seq(1, 20)],
            [ok = insist(fun() -> push(Connection, Message) end) || Message <- Messages],
            ok = close(Connection),
            ?assert(iolist_to_binary(Messages) =:= await_closed(Client)),
            {<<"closed">>} = next(<<"lost">>),
            ?assertEqual({error, closed}, push(Connection, "too late"))
        end
     || Size <- [10, 5000, 60_000]
    ].

what_is_pushed_goes_after_what_the_protocol_began(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 1_000_000\n"
    ),
    {Client, Connection} = connected(Config),
    ok = gen_tcp:send(Client, "0123456789"),
    wait_until("it is blocked", fun() -> eval("0 < len(it.write_buffer) < 10_000_000") end),
    ok = push(Connection, "pushed"),
    {ok, Data} = gen_tcp:recv(Client, 10_000_006, ?PATIENCE_MS),
    ?assertEqual(<<"pushed">>, binary:part(Data, 10_000_006, -6)),
    end_of(Client).

what_is_pushed_waits_while_the_protocol_pauses(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    return 'pause'\n"
    ),
    {Client, Connection} = connected(Config),
    ok = push(Connection, "one"),
    ok = push(Connection, "two"),
    nothing(),
    {error, timeout} = gen_tcp:recv(Client, 0, 0),
    %% No more than may wait, and that is not the peer's fault.
    Message = binary:copy(<<"x">>, 1000),
    Answers = [push(Connection, Message) || _ <- lists:seq(1, 100)],
    ?assertEqual([ok, {error, overload}], lists:usort(Answers)),
    Taken = length([ok || ok <- Answers]),
    ?assertEqual((?HIGH_WATER - 6) div 1000, Taken),
    ?assert(eval("reactor.resume(it)")),
    {ok, <<"onetwo", Rest/binary>>} = gen_tcp:recv(Client, 6 + 1000 * Taken, ?PATIENCE_MS),
    ?assertEqual(binary:copy(Message, Taken), Rest),
    end_of(Client).

bytes_can_be_pushed_while_reading_is_paused(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.pause_reading()\n"
        "    return super().connection_made(fd, client_info)\n"
    ),
    {Client, Connection} = connected(Config),
    nothing(),
    ok = push(Connection, "pushed"),
    {ok, <<"pushed">>} = gen_tcp:recv(Client, 6, ?PATIENCE_MS),
    none = eval("it.resume_reading()"),
    end_of(Client).

bytes_reach_a_peer_whose_connection_is_parked(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    [
        begin
            await_parked(),
            ok = push(Connection, "pushed"),
            {ok, <<"pushed">>} = gen_tcp:recv(Client, 6, ?PATIENCE_MS)
        end
     || _ <- [1, 2, 3]
    ],
    end_of(Client).

bytes_reach_a_peer_after_its_half_close(Config) ->
    protocol("def eof_received(self):\n    tell('eof')\n    return 'continue'\n"),
    {Client, Connection} = connected(Config),
    ok = gen_tcp:shutdown(Client, write),
    {} = next(<<"eof">>),
    ok = push(Connection, "still "),
    ok = push(Connection, "there"),
    ok = close(Connection),
    ?assertEqual(<<"still there">>, await_closed(Client)),
    {<<"eof">>} = next(<<"lost">>).

a_push_to_a_peer_that_is_gone_ends_the_connection(Config) ->
    protocol("def eof_received(self):\n    tell('eof')\n    return 'continue'\n"),
    {Client, Connection} = connected(Config),
    ok = gen_tcp:close(Client),
    {} = next(<<"eof">>),
    wait_until("nobody takes it", fun() -> push(Connection, "x") =:= {error, closed} end),
    {Reason} = next(<<"lost">>),
    ?assert(lists:member(Reason, [<<"reset">>, <<"peer_gone">>])).

each_pushed_message_is_a_datagram(_Config) ->
    protocol("pass\n"),
    [
        begin
            exec(["ours, theirs = ", Pair]),
            ok = told:handed("os.dup(ours.fileno())"),
            {_} = next(<<"made">>),
            {Connection} = next(<<"connection">>),
            [ok = insist(fun() -> push(Connection, Message) end) || Message <- ["one", "two", "three"]],
            ?assertEqual(
                [<<"one">>, <<"two">>, <<"three">>], eval("[theirs.recv(100) for _ in range(3)]")
            ),
            exec("theirs.send(b'answer')"),
            {<<"answer">>} = next(<<"data">>),
            ok = close(Connection),
            {<<"closed">>} = next(<<"lost">>),
            exec("ours.close(); theirs.close()")
        end
     || Pair <- ["socket.socketpair(type=socket.SOCK_DGRAM)", "udp_pair()"]
    ].

a_datagram_that_cannot_be_sent_is_lost_alone(_Config) ->
    protocol("pass\n"),
    exec("ours, theirs = udp_pair()"),
    ok = told:handed("os.dup(ours.fileno())"),
    {_} = next(<<"made">>),
    {Connection} = next(<<"connection">>),
    %% UDP has no datagrams of that size.
    ok = push(Connection, binary:copy(<<"x">>, ?HIGH_WATER)),
    ok = insist(fun() -> push(Connection, "small") end),
    ?assertEqual(<<"small">>, eval("theirs.recv(100_000)")),
    exec("theirs.close()"),
    [ok = insist(fun() -> push(Connection, "nobody") end) || _ <- lists:seq(1, 10)],
    nothing(),
    ok = close(Connection),
    {<<"closed">>} = next(<<"lost">>),
    exec("ours.close()").

bytes_can_be_pushed_into_pipes_and_terminals(_Config) ->
    protocol("pass\n"),
    [
        begin
            exec(["theirs, ours = ", Pair]),
            ok = told:handed("os.dup(ours)"),
            {_} = next(<<"made">>),
            {Connection} = next(<<"connection">>),
            ok = push(Connection, "pushed\n"),
            ?assertMatch(<<"pushed", _/binary>>, eval("os.read(theirs, 100)")),
            ok = close(Connection),
            {<<"closed">>} = next(<<"lost">>),
            exec("os.close(ours); os.close(theirs)")
        end
     || Pair <- ["os.pipe()", "os.openpty()"]
    ].

a_push_into_the_reading_end_of_a_pipe_ends_the_connection(_Config) ->
    protocol("pass\n"),
    exec("ours, theirs = os.pipe()"),
    ok = told:handed("os.dup(ours)"),
    {_} = next(<<"made">>),
    {Connection} = next(<<"connection">>),
    ok = push(Connection, "upstream"),
    {<<"failed: ", _/binary>>} = next(<<"lost">>),
    exec("os.close(ours); os.close(theirs)").

%%--------------------------------------------------------------------------------------------------
%% Slow consumers

drop_new_drops_what_is_pushed_last(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    none = eval("it.set_slow_consumer('drop_new')"),
    Before = counter(drops),
    Answers = [{insist(fun() -> push(Connection, message(N)) end), N} || N <- lists:seq(1, 20_000)],
    Taken = [N || {ok, N} <- Answers],
    Dropped = [N || {{error, dropped}, N} <- Answers],
    ?assertEqual(20_000, length(Taken) + length(Dropped)),
    ?assert(length(Dropped) > 0),
    ?assertEqual(length(Dropped), counter(drops) - Before),
    ?assertEqual(Taken, messages(Client, length(Taken))),
    ok = push(Connection, message(0)),
    ?assertEqual([0], messages(Client, 1)),
    end_of(Client).

drop_old_drops_what_was_pushed_first(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    none = eval("it.set_slow_consumer('drop_old')"),
    Before = counter(drops),
    %% What is sent in part is not dropped, so there may be no room for a new one.
    Answers = [{insist(fun() -> push(Connection, message(N)) end), N} || N <- lists:seq(1, 20_000)],
    Taken = [N || {ok, N} <- Answers],
    ?assertEqual(20_000, length(Taken) + length([N || {{error, dropped}, N} <- Answers])),
    Dropped = counter(drops) - Before,
    ?assert(Dropped > 0),
    Arrived = messages(Client, 20_000 - Dropped),
    ?assertEqual(Arrived, lists:usort(Arrived)),
    ?assertEqual([], Arrived -- Taken),
    %% The last ones are those that arrive.
    Last = fun(Numbers) -> lists:nthtail(length(Numbers) - 10, Numbers) end,
    ?assertEqual(Last(Taken), Last(Arrived)),
    {error, timeout} = gen_tcp:recv(Client, 0, 0),
    end_of(Client).

buffer_ends_a_connection_with_one_message_more_than_may_wait(Config) ->
    [
        begin
            protocol(
                "def data_received(self, data):\n"
                "    self.write_buffer += bytes(30_000_000)\n"
            ),
            {Client, Connection} = connected(Config),
            none = eval("it.set_slow_consumer('buffer', n)", #{n => Most}),
            %% The kernel refuses already, so all that is pushed waits.
            ok = gen_tcp:send(Client, "x"),
            wait_until("it is blocked", fun() -> eval("0 < len(it.write_buffer) < 30_000_000") end),
            [ok = push(Connection, message(N)) || N <- lists:seq(1, Most)],
            nothing(),
            ?assertEqual({error, closed}, push(Connection, message(0))),
            {<<"slow_consumer">>} = next(<<"lost">>),
            ?assertEqual({error, closed}, push(Connection, "x")),
            ?assertEqual({error, closed}, send(Connection, x)),
            _ = await_closed(Client)
        end
     || Most <- [1, 2, 50]
    ].

a_slow_reader_ends_by_the_policy_that_nobody_has_set(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    push_until(Connection, message(1), {error, closed}),
    {<<"slow_consumer">>} = next(<<"lost">>),
    _ = await_closed(Client).

disconnect_ends_a_connection_with_the_first_message_that_is_not_taken(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    none = eval("it.set_slow_consumer('disconnect')"),
    Before = closed_by(slow_consumer),
    push_until(Connection, message(1), {error, closed}),
    {<<"slow_consumer">>} = next(<<"lost">>),
    wait_until("it is counted", fun() -> closed_by(slow_consumer) - Before end, 1),
    _ = await_closed(Client).

disconnect_holds_while_the_protocol_itself_is_refused(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += bytes(30_000_000)\n"
    ),
    {Client, Connection} = connected(Config),
    none = eval("it.set_slow_consumer('disconnect')"),
    ok = gen_tcp:send(Client, "x"),
    wait_until("it is blocked", fun() -> eval("0 < len(it.write_buffer) < 30_000_000") end),
    ?assertEqual({error, closed}, push(Connection, "one more")),
    {<<"slow_consumer">>} = next(<<"lost">>),
    _ = await_closed(Client).

a_listener_says_what_becomes_of_slow_consumers(_Config) ->
    protocol("pass\n"),
    Name = {?MODULE, self()},
    {ok, _} = py_reactor:start_listener(Name, #{
        ip => loopback, slow_consumer => drop_new, high_water => 1000, low_water => 100
    }),
    {ok, Client} =
        gen_tcp:connect({127, 0, 0, 1}, py_reactor:get_port(Name), [binary, {active, false}]),
    {_} = next(<<"made">>),
    {Connection} = next(<<"connection">>),
    ?assertEqual({error, too_large}, push(Connection, binary:copy(<<"x">>, 1001))),
    Message = binary:copy(<<"x">>, 999),
    push_until(Connection, Message, {error, dropped}),
    #{drops := Drops} = py_reactor:listener_info(Name),
    ?assert(Drops > 0),
    %% The protocol may choose another way for its own connection.
    none = eval("it.set_slow_consumer('disconnect')"),
    push_until(Connection, Message, {error, closed}),
    {<<"slow_consumer">>} = next(<<"lost">>),
    _ = await_closed(Client),
    wait_until("it is counted", fun() ->
        maps:get(slow_consumer, maps:get(closed_by, py_reactor:listener_info(Name)))
    end, 1),
    ok = py_reactor:stop_listener(Name).

a_slow_consumer_disturbs_nobody_else(Config) ->
    protocol("pass\n"),
    {Slow, SlowConnection} = connected(Config),
    none = eval("it.set_slow_consumer('drop_old')"),
    {Fast, FastConnection} = connected(Config),
    [
        begin
            ok = insist(fun() -> push(SlowConnection, message(N)) end),
            ok = insist(fun() -> push(FastConnection, message(N)) end),
            [N] = messages(Fast, 1)
        end
     || N <- lists:seq(1, 5000)
    ],
    [end_of(Client) || Client <- [Fast, Slow]].

a_policy_that_is_none_is_an_error(Config) ->
    protocol("pass\n"),
    {Client, _} = connected(Config),
    exec(
        "def refused(*arguments):\n"
        "    try:\n"
        "        it.set_slow_consumer(*arguments)\n"
        "    except (ValueError, TypeError, OverflowError) as error:\n"
        "        return type(error).__name__\n"
    ),
    [
        ?assertEqual(Class, eval(["refused(", Arguments, ")"]))
     || {Arguments, Class} <- [
            {"'drop'", <<"ValueError">>},
            {"''", <<"ValueError">>},
            {"'buffer'", <<"ValueError">>},
            {"'buffer', 0", <<"ValueError">>},
            {"'buffer', -1", <<"OverflowError">>},
            {"'buffer', 1.5", <<"TypeError">>},
            {"'drop_old', 1", <<"ValueError">>},
            {"None", <<"TypeError">>},
            {"7", <<"TypeError">>}
        ]
    ],
    ?assertEqual(none, eval("refused('buffer', 10)")),
    end_of(Client).

%% A thousand bytes that tell their number.
message(Number) ->
    <<Number:32, 0:(996 * 8)>>.

messages(Client, Count) ->
    {ok, Bytes} = gen_tcp:recv(Client, Count * 1000, ?PATIENCE_MS),
    [Number || <<Number:32, 0:(996 * 8)>> <= Bytes].

%% Pushes the same again and again until that is the answer.
push_until(Connection, Message, Answer) ->
    case push(Connection, Message) of
        Answer ->
            ok;
        Other when Other =:= ok; Other =:= {error, overload} ->
            push_until(Connection, Message, Answer)
    end.

%%--------------------------------------------------------------------------------------------------
%% Closing from Erlang

close_sends_what_is_buffered_first(Config) ->
    protocol(
        "def message_received(self, message):\n"
        "    self.write_buffer += b'last words'\n"
        "    tell('ready')\n"
        "    return 'continue'\n"
    ),
    {Client, Connection} = connected(Config),
    ok = send(Connection, x),
    {} = next(<<"ready">>),
    ok = close(Connection),
    ?assertEqual(<<"last words">>, await_closed(Client)),
    {<<"closed">>} = next(<<"lost">>),
    ?assertEqual({error, closed}, close(Connection)),
    nothing().

close_works_in_every_state(Config) ->
    [
        begin
            protocol(["def connection_made(self, fd, client_info):\n"
                "    super().connection_made(fd, client_info)\n"
                "    ", Body, "\n"]),
            {Client, Connection} = connected(Config),
            Settle(),
            ok = close(Connection),
            _ = await_closed(Client),
            {<<"closed">>} = next(<<"lost">>)
        end
     || {Body, Settle} <- [
            {"return 'pause'", fun told:nothing/0},
            {"self.pause_reading()", fun told:nothing/0},
            {"return 'continue'", fun await_parked/0},
            {"return 'continue'", fun() -> ok end},
            {"self.write_buffer += bytes(10_000_000)", fun told:nothing/0}
        ]
    ].

many_may_close_the_same_connection(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    Answers = together(50, fun(_) -> close(Connection) end),
    ?assertEqual([], lists:usort(Answers) -- [ok, {error, closed}]),
    ?assert(lists:member(ok, Answers)),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"closed">>} = next(<<"lost">>),
    nothing().

%%--------------------------------------------------------------------------------------------------
%% Handles

a_connection_is_the_same_reference_each_time(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    {Other, OtherConnection} = connected(Config),
    ?assert(is_reference(Connection)),
    ?assertNotEqual(Connection, OtherConnection),
    exec("first, second = [p for p in everyone if not p.closed]"),
    [?assert(eval("first.connection") =:= Connection) || _ <- lists:seq(1, 100)],
    erlang:garbage_collect(),
    ?assert(eval("second.connection") =:= OtherConnection),
    Members = #{Connection => one, OtherConnection => two},
    ?assertEqual(one, maps:get(eval("first.connection"), Members)),
    ?assertEqual({Connection, [Connection]}, eval("(first.connection, [first.connection])")),
    exec("del first, second"),
    [end_of(Each) || Each <- [Client, Other]].

a_handle_goes_to_python_and_comes_back_as_the_same(Config) ->
    protocol(
        "def message_received(self, message):\n"
        "    known = message == self.connection and not message != self.connection\n"
        "    hashed = {message: 1}.get(self.connection) == 1 and hash(message) == hash(self.connection)\n"
        "    tell('known', known, hashed, message, type(message) is erlang.Connection)\n"
    ),
    {Client, Connection} = connected(Config),
    {Other, OtherConnection} = connected(Config),
    ok = send(Connection, Connection),
    {true, true, Connection, true} = next(<<"known">>),
    ok = send(Connection, OtherConnection),
    {false, false, OtherConnection, true} = next(<<"known">>),
    ?assertEqual(Connection, eval("v", #{v => Connection})),
    ?assertEqual(
        [true, false, false, true],
        eval("[a == a, a == b, a == 1, len({a, b, a}) == 2]", #{a => Connection, b => OtherConnection})
    ),
    ?assertMatch(
        {match, _}, re:run(eval("repr(a)", #{a => Connection}), "^<erlang.Connection [0-9]+>$")
    ),
    [end_of(Each) || Each <- [Client, Other]].

a_handle_outlives_its_connection_on_both_sides(Config) ->
    protocol(
        "def connection_lost(self):\n"
        "    kept.append(self.connection)\n"
        "    tell('still', self.connection, self.connection == kept[0])\n"
        "    super().connection_lost()\n"
    ),
    exec("kept = []"),
    {Client, Connection} = connected(Config),
    none = eval("kept.append(it.connection)"),
    ok = gen_tcp:close(Client),
    {} = next(<<"eof">>),
    {Connection, true} = next(<<"still">>),
    {<<"eof">>} = next(<<"lost">>),
    %% Python forgets the protocol and its handle.
    exec("del it; everyone.clear(); kept.clear(); import gc; gc.collect()"),
    [?assert(eval("v", #{v => Connection}) =:= Connection) || _ <- [1, 2]],
    ?assert(eval("v == w and hash(v) == hash(w)", #{v => Connection, w => Connection})),
    ?assertEqual({error, closed}, send(Connection, x)),
    ?assertEqual({error, closed}, push(Connection, "x")),
    ?assertEqual({error, closed}, close(Connection)),
    nothing().

a_handle_never_becomes_another_connection(Config) ->
    protocol("def message_received(self, message):\n    tell('message', message)\n"),
    {Client, First} = connected(Config),
    Fd = eval("it.fd"),
    end_of(Client),
    exec("everyone.clear()"),
    Reused = reuse(Config, First, Fd, 10_000, 0),
    %% The number came back, most often.
    ?assert(Reused > 1000).

reuse(_Config, _First, _Fd, 0, Reused) ->
    Reused;
reuse(Config, First, Fd, Left, Reused) ->
    Client = reactor_case:open(?config(listener, Config)),
    {_} = next(<<"made">>),
    {Connection} = next(<<"connection">>),
    true = Connection =/= First,
    {error, closed} = send(First, x),
    {error, closed} = push(First, "x"),
    {error, closed} = close(First),
    ok = send(Connection, Left),
    {Left} = next(<<"message">>),
    Same =
        case Left rem 100 of
            0 -> eval("it.fd == fd and everyone.clear() is None", #{fd => Fd});
            _ -> false
        end,
    end_of(Client),
    reuse(Config, First, Fd, Left - 1, Reused + 100 * length([1 || Same])).

what_is_no_handle_is_a_badarg(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    Monitor = py_reactor_connection:monitor(Connection),
    Foreign = binary_to_term(
        %% The same reference, of another node.
        binary:replace(
            term_to_binary(make_ref()), atom_to_binary(node()), other_node(), [global]
        )
    ),
    ?assert(is_reference(Foreign)),
    Calls = [
        fun(Term) -> send(Term, x) end,
        fun(Term) -> push(Term, "x") end,
        fun py_reactor_connection:close/1,
        fun py_reactor_connection:monitor/1
    ],
    [
        ?assertError(badarg, Call(Term))
     || Term <- [make_ref(), Foreign, self(), 17, atom, <<"x">>, [Connection], Monitor], Call <- Calls
    ],
    [
        ?assertError(badarg, py_reactor_connection:demonitor(Term))
     || Term <- [make_ref(), Foreign, self(), 17, Connection]
    ],
    true = py_reactor_connection:demonitor(Monitor),
    exec(
        "def refused(handle):\n"
        "    try:\n"
        "        erlang.send('told', ('sent', erlang.Connection(handle)))\n"
        "    except ValueError as error:\n"
        "        return 'not a handle' in str(error)\n"
    ),
    [
        ?assert(eval(["refused(", Handle, ")"]))
     || Handle <- ["None", "1", "'x'", "b'x'", "object()", "refused", "erlang.whereis('told')"]
    ],
    nothing(),
    end_of(Client).

%% As long as the name of this one.
other_node() ->
    binary:copy(<<"x">>, byte_size(atom_to_binary(node()))).

a_handle_that_went_abroad_works_again_at_home(Config) ->
    protocol("def message_received(self, message):\n    tell('message', message)\n"),
    {Client, Connection} = connected(Config),
    {ok, Peer, _} = peer:start(#{
        connection => standard_io, args => ["-pa", filename:dirname(code:which(py_nif))]
    }),
    %% There it is a reference like any other.
    ?assertEqual(Connection, peer:call(Peer, lists, last, [[Connection]])),
    [
        ?assertError(badarg, peer:call(Peer, py_reactor_connection, Function, Arguments))
     || {Function, Arguments} <- [
            {send, [Connection, x]}, {push, [Connection, "x"]}, {close, [Connection]},
            {monitor, [Connection]}
        ]
    ],
    Home = peer:call(Peer, erlang, element, [1, {Connection}]),
    ok = peer:stop(Peer),
    ok = send(Home, back),
    {<<"back">>} = next(<<"message">>),
    end_of(Client).

%%--------------------------------------------------------------------------------------------------
%% Monitors

a_monitor_tells_how_a_connection_ended(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    exec(data, {'self': self, 'os': os})\n"
        "    return self.answer\n"
        "answer = 'continue'\n"
    ),
    [
        begin
            {Client, Connection} = connected(Config),
            Monitor = py_reactor_connection:monitor(Connection),
            End(Client, Connection),
            ?assertEqual(Reason, reason_of(Monitor, Connection)),
            [{} = next(<<"eof">>) || Reason =:= eof],
            ?assertEqual({atom_to_binary(Reason)}, next(<<"lost">>)),
            ok = gen_tcp:close(Client)
        end
     || {Reason, End} <- [
            {closed, fun(_, Connection) -> ok = close(Connection) end},
            {closed, told_to("self.answer = 'close'")},
            {aborted, told_to("self.answer = 'abort'")},
            {exception, told_to("1 / 0")},
            {exception, told_to("self.answer = 17")},
            {timeout, told_to("self.set_timeout(0)")},
            {eof, fun(Client, _) -> ok = gen_tcp:shutdown(Client, write) end},
            {peer_gone, fun(Client, _) ->
                ok = gen_tcp:send(Client, "self.pause_reading()"),
                nothing(),
                reset(Client)
            end},
            {slow_consumer, fun(_, Connection) ->
                none = eval("it.set_slow_consumer('disconnect')"),
                push_until(Connection, message(1), {error, closed})
            end}
        ]
    ].

told_to(Code) ->
    fun(Client, _Connection) -> ok = gen_tcp:send(Client, Code) end.

a_monitor_tells_the_text_of_a_system_error(_Config) ->
    protocol("pass\n"),
    exec("ours, theirs = os.pipe()"),
    ok = told:handed("os.dup(ours)"),
    {_} = next(<<"made">>),
    {Connection} = next(<<"connection">>),
    Monitor = py_reactor_connection:monitor(Connection),
    ok = push(Connection, "upstream"),
    {failed, Text} = reason_of(Monitor, Connection),
    ?assert(is_binary(Text)),
    {<<"failed: ", _/binary>>} = next(<<"lost">>),
    exec("os.close(ours); os.close(theirs)").

a_monitor_is_told_when_the_context_stops_or_is_killed(Config) ->
    [
        begin
            protocol("pass\n"),
            process_flag(trap_exit, true),
            {ok, Context} = py_reactor_context:start_link(#{}),
            Client = reactor_case:open(?config(listener, Config), #{}, Context),
            {_} = next(<<"made">>),
            {Connection} = next(<<"connection">>),
            Monitor = py_reactor_connection:monitor(Connection),
            End(Context),
            ?assertEqual(stopped, reason_of(Monitor, Connection)),
            {<<"stopped">>} = next(<<"lost">>),
            _ = await_closed(Client),
            receive {'EXIT', Context, _} -> ok end,
            process_flag(trap_exit, false),
            ?assertEqual({error, closed}, send(Connection, x)),
            Late = py_reactor_connection:monitor(Connection),
            ?assertEqual(noproc, reason_of(Late, Connection))
        end
     || End <- [
            fun(Context) -> ok = py_reactor_context:stop(Context) end,
            fun(Context) -> exit(Context, kill) end
        ]
    ].

stopping_the_application_tells_every_monitor(_Config) ->
    told:start(#{}),
    true = register(told, self()),
    protocol("pass\n"),
    Listener = reactor_case:listen(),
    Clients = [reactor_case:open(Listener) || _ <- lists:seq(1, 20)],
    Connections = [
        begin
            {_} = next(<<"made">>),
            {Connection} = next(<<"connection">>),
            Connection
        end
     || _ <- Clients
    ],
    Monitors = [{py_reactor_connection:monitor(Connection), Connection} || Connection <- Connections],
    %% Python outlives the application.
    true = eval("forget()"),
    ok = application:stop(py_reactor),
    [
        ?assertEqual(stopped, reason_of(Monitor, Connection))
     || {Monitor, Connection} <- Monitors
    ],
    [?assertEqual({error, closed}, send(Connection, x)) || Connection <- Connections],
    [_ = await_closed(Client) || Client <- Clients],
    ok = gen_tcp:close(Listener).

a_monitor_of_a_closed_connection_tells_at_once(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    end_of(Client),
    Monitor = py_reactor_connection:monitor(Connection),
    receive
        {'DOWN', Monitor, connection, Connection, noproc} -> ok
    after 0 -> error(not_at_once)
    end,
    no_down().

every_monitor_tells_once(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    Mine = [py_reactor_connection:monitor(Connection) || _ <- lists:seq(1, 1000)],
    ?assertEqual(1000, length(lists:usort(Mine))),
    Case = self(),
    Others = [
        spawn_link(fun() ->
            Monitor = py_reactor_connection:monitor(Connection),
            Case ! {self(), watching},
            Case ! {self(), reason_of(Monitor, Connection)},
            no_down()
        end)
     || _ <- lists:seq(1, 100)
    ],
    [receive {Other, watching} -> ok end || Other <- Others],
    ok = close(Connection),
    [?assertEqual(closed, reason_of(Monitor, Connection)) || Monitor <- Mine],
    [receive {Other, Reason} -> ?assertEqual(closed, Reason) end || Other <- Others],
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"closed">>} = next(<<"lost">>),
    no_down().

a_monitor_that_is_taken_back_tells_nothing(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    [First, Second, Third] = [py_reactor_connection:monitor(Connection) || _ <- [1, 2, 3]],
    true = py_reactor_connection:demonitor(First),
    true = py_reactor_connection:demonitor(First),
    ok = close(Connection),
    ?assertEqual(closed, reason_of(Second, Connection)),
    {<<"closed">>} = next(<<"lost">>),
    %% The message of the third is there, or will be; then it is taken out of the mailbox.
    true = py_reactor_connection:demonitor(Third),
    true = py_reactor_connection:demonitor(Third),
    true = py_reactor_connection:demonitor(Second),
    no_down(),
    ?assertEqual(<<>>, await_closed(Client)).

taking_a_monitor_back_while_it_tells_leaves_nothing_behind(Config) ->
    protocol("def connection_lost(self):\n    pass\n"),
    [
        begin
            Client = reactor_case:open(?config(listener, Config)),
            {_} = next(<<"made">>),
            {Connection} = next(<<"connection">>),
            Monitors = [py_reactor_connection:monitor(Connection) || _ <- lists:seq(1, 10)],
            ok = close(Connection),
            Round rem 3 =:= 0 andalso erlang:yield(),
            [true = py_reactor_connection:demonitor(Monitor) || Monitor <- Monitors],
            no_down(),
            <<>> = await_closed(Client)
        end
     || Round <- lists:seq(1, 300)
    ],
    nothing(),
    no_down().

watchers_that_die_are_forgotten(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    Watch = fun() -> together(500, fun(_) -> py_reactor_connection:monitor(Connection), ok end) end,
    leaves_no_memory(fun() -> [Watch() || _ <- lists:seq(1, 40)] end),
    Monitor = py_reactor_connection:monitor(Connection),
    ok = close(Connection),
    ?assertEqual(closed, reason_of(Monitor, Connection)),
    {<<"closed">>} = next(<<"lost">>),
    ?assertEqual(<<>>, await_closed(Client)).

a_hundred_thousand_monitors_that_were_taken_back_leave_nothing(Config) ->
    protocol("pass\n"),
    {Client, Connection} = connected(Config),
    leaves_no_memory(fun() ->
        [
            true = py_reactor_connection:demonitor(py_reactor_connection:monitor(Connection))
         || _ <- lists:seq(1, 100_000)
        ]
    end),
    no_down(),
    end_of(Client).

%% A monitor is memory of the VM, some hundred bytes.
leaves_no_memory(Work) ->
    erlang:garbage_collect(),
    Before = erlang:memory(total),
    Work(),
    erlang:garbage_collect(),
    wait_until("the memory is given back", fun() -> erlang:memory(total) - Before < 2_000_000 end).

%%--------------------------------------------------------------------------------------------------
%% All together

whatever_happens_every_monitor_tells_once_and_nothing_is_left(_Config) ->
    exec(
        "import random\n"
        "class Chaos(reactor_case.Counted):\n"
        "    def connection_made(self, fd, client_info):\n"
        "        self.set_timeout(random.choice([0, 0.001, 0.05, 10, None]))\n"
        "        self.set_slow_consumer(random.choice(['drop_old', 'drop_new', 'disconnect']))\n"
        "        if random.random() < 0.1:\n"
        "            self.pause_reading()\n"
        "        erlang.send(client_info['owner'], ('connection', self.connection))\n"
        "        return random.choice([None, 'continue', 'pause', 'write_pending'])\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data * random.choice([1, 1, 1000])\n"
        "        return random.choice([\n"
        "            None, 'write_pending', 'continue', 'read_pending', 'pause', 'close', 'abort', 17\n"
        "        ])\n"
        "    def message_received(self, message):\n"
        "        self.set_timeout(random.choice([0, 0.001, None]))\n"
        "        random.choice([self.pause_reading, self.resume_reading])()\n"
        "        if random.random() < 0.1:\n"
        "            action = random.choice(['close', 'read_pending', 'write_pending', 'abort'])\n"
        "            threading.Thread(target=reactor.resume, args=(self, action)).start()\n"
        "        return random.choice([None, 'continue', 'pause', 'close', 'abort'])\n"
        "    def timeout_expired(self):\n"
        "        self.set_timeout(random.choice([0.001, None, None]))\n"
        "        return random.choice(['continue', None, 'close', 'abort', 'pause'])\n"
        "reactor.set_protocol_factory(Chaos)\n"
    ),
    together(10, fun(_) ->
        Listener = reactor_case:listen(),
        [chaotic_life(Listener) || _ <- lists:seq(1, 100)],
        ok = gen_tcp:close(Listener)
    end),
    reactor_case:await_ledger(1000).

chaotic_life(Listener) ->
    Client = reactor_case:open(Listener, #{owner => self()}),
    Connection = receive {<<"connection">>, Handle} -> Handle end,
    Monitors = [py_reactor_connection:monitor(Connection) || _ <- lists:seq(1, 3)],
    [chaotic_step(Client, Connection) || _ <- lists:seq(1, rand:uniform(6))],
    true = py_reactor_connection:demonitor(hd(Monitors)),
    chaotic_end(rand:uniform(4), Client, Connection),
    [_ = reason_of(Monitor, Connection) || Monitor <- tl(Monitors)],
    {error, closed} = send(Connection, x),
    no_down(),
    ok = gen_tcp:close(Client).

chaotic_step(Client, Connection) ->
    case rand:uniform(4) of
        1 -> _ = gen_tcp:send(Client, rand:bytes(rand:uniform(100)));
        2 -> _ = send(Connection, {hello, Connection});
        3 -> [push(Connection, rand:bytes(rand:uniform(60_000))) || _ <- lists:seq(1, 10)];
        4 -> _ = gen_tcp:recv(Client, 0, 1)
    end.

chaotic_end(1, Client, _Connection) ->
    reset(Client);
chaotic_end(2, Client, Connection) ->
    _ = gen_tcp:shutdown(Client, write),
    close(Connection),
    reset(Client);
chaotic_end(3, Client, Connection) ->
    close(Connection),
    reset(Client);
chaotic_end(4, Client, Connection) ->
    ok = gen_tcp:close(Client),
    close(Connection).

%%--------------------------------------------------------------------------------------------------

%% As `told:protocol', of a class that also tells its connection and notes who it is.
protocol(Body) ->
    Noting = eval("hasattr(__main__, 'Noting')"),
    [
        exec(
            "class Noting(Told):\n"
            "    def connection_made(self, fd, client_info):\n"
            "        globals()['it'] = self\n"
            "        everyone.append(self)\n"
            "        self.called = []\n"
            "        super().connection_made(fd, client_info)\n"
            "        tell('connection', self.connection)\n"
            "    def data_received(self, data):\n"
            "        self.called.append('data_received')\n"
            "        return super().data_received(data)\n"
            "    def write_ready(self):\n"
            "        self.called.append('write_ready')\n"
            "        return super().write_ready()\n"
            "del Noting.write_ready\n"
            "everyone = []\n"
            "def udp_pair():\n"
            "    one, other = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))\n"
            "    one.bind(('127.0.0.1', 0))\n"
            "    other.bind(('127.0.0.1', 0))\n"
            "    one.connect(other.getsockname())\n"
            "    other.connect(one.getsockname())\n"
            "    return one, other\n"
        )
     || not Noting
    ],
    Text = unicode:characters_to_binary(Body),
    Dedented = eval("textwrap.indent(textwrap.dedent(body), '    ')", #{body => Text}),
    exec(["class P(Noting):\n    pass\n", Dedented, "\nreactor.set_protocol_factory(P)\n"]).

%% A new client, and the handle of its connection.
connected(Config) ->
    Client = told:connected(Config),
    {Connection} = next(<<"connection">>),
    {Client, Connection}.

end_of(Client) ->
    ok = gen_tcp:close(Client),
    told_at_last(<<"lost">>).

told_at_last(Word) ->
    case next() of
        Message when element(1, Message) =:= Word -> ok;
        _ -> told_at_last(Word)
    end.

reason_of(Monitor, Connection) ->
    receive
        {'DOWN', Monitor, connection, Connection, Reason} -> Reason
    after ?PATIENCE_MS -> error({no_down, Monitor})
    end.

no_down() ->
    receive
        Down when element(1, Down) =:= 'DOWN' -> error(Down)
    after 0 -> ok
    end.

%% Tries until the context has had its turn.
insist(Try) ->
    case Try() of
        {error, overload} ->
            erlang:yield(),
            insist(Try);
        Answer ->
            Answer
    end.

%% What so many processes answer, who do something at the same time.
together(Count, Work) ->
    Case = self(),
    Workers = [spawn_link(fun() -> Case ! {self(), Work(N)} end) || N <- lists:seq(1, Count)],
    [receive {Worker, Answer} -> Answer end || Worker <- Workers].

await_end(Pid) ->
    Monitor = monitor(process, Pid),
    receive {'DOWN', Monitor, process, Pid, _} -> ok end.

await_parked() ->
    wait_until("every connection is parked", fun() ->
        lists:all(
            fun(#{parked := Parked, active := Active}) -> Parked =:= Active end,
            [py_reactor_context:stats(Context) || Context <- py_reactor_pool:contexts()]
        )
    end).

callbacks() ->
    counter(callbacks).

counter(Name) ->
    lists:sum([
        maps:get(Name, py_reactor_context:stats(Context))
     || Context <- py_reactor_pool:contexts()
    ]).

closed_by(Reason) ->
    lists:sum([
        maps:get(Reason, maps:get(closed_by, py_reactor_context:stats(Context)))
     || Context <- py_reactor_pool:contexts()
    ]).

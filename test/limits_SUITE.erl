%%% Time and memory: timeouts that a protocol sets, reading that it stops, output that its peer does not
%%% take, and what a listener allows its connections.
%%%
%%% Every case runs twice, as in reactor_SUITE: with connections that linger with their worker, and with
%%% connections that are parked in the BEAM after each event.
-module(limits_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_closed/1, await_logged/1, reset/1, wait_until/2, wait_until/3]).
-import(told, [protocol/1, exec/1, eval/1, eval/2, connected/1, connected/2, next/0, next/1]).
-import(told, [nothing/0]).

-define(PATIENCE_MS, 20000).
%% As docs/protocols.md has them.
-define(HIGH_WATER, 65536).
-define(LOW_WATER, 16384).
-define(MAX_READ, 122880).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, lingering}, {group, parked_at_once}].

groups() ->
    told:groups(cases()).

cases() ->
    told:cases(?MODULE).

init_per_group(Group, Config) ->
    told:start(#{linger_ms => told:linger_ms(Group)}),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(_Case, Config) ->
    told:begin_case(Config).

end_per_testcase(_Case, Config) ->
    told:end_case(Config).

%%--------------------------------------------------------------------------------------------------
%% Timeouts

a_timeout_expires_once_for_each_time_it_is_set(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.set_timeout(0.001)\n"
        "    return super().connection_made(fd, client_info)\n"
        "def data_received(self, data):\n"
        "    self.set_timeout(0.001)\n"
        "def timeout_expired(self):\n"
        "    tell('expired')\n"
        "    return 'continue'\n"
    ),
    Before = counter(timeouts),
    Client = connected(Config),
    {} = next(<<"expired">>),
    nothing(),
    [
        begin
            ok = gen_tcp:send(Client, "x"),
            {} = next(<<"expired">>),
            nothing()
        end
     || _ <- [1, 2]
    ],
    ?assertEqual(3, counter(timeouts) - Before),
    end_of(Client).

a_timeout_closes_unless_the_protocol_says_otherwise(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.set_timeout(0)\n"
        "    self.write_buffer += b'too late'\n"
        "    super().connection_made(fd, client_info)\n"
        "    return 'continue'\n"
    ),
    Before = counter(timeouts),
    BeforeReason = closed_by(timeout),
    Client = connected(Config),
    ?assertEqual(<<"too late">>, await_closed(Client)),
    {<<"timeout">>} = next(<<"lost">>),
    nothing(),
    ?assertEqual(1, closed_by(timeout) - BeforeReason),
    %% It is one timeout, though both the time and the connection are over.
    ?assertEqual(1, counter(timeouts) - Before).

a_later_timeout_takes_the_place_of_an_earlier_one(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    %% In one callback: on a busy machine the first would be over before the second comes.
    {} = set_timeouts(Client, ["0.02", "3600"]),
    nothing(),
    {} = set_timeout(Client, "1800"),
    {} = set_timeout(Client, "0.001"),
    {} = next(<<"expired">>),
    nothing(),
    end_of(Client).

none_takes_a_timeout_back(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    {} = set_timeouts(Client, ["0.02", "None"]),
    nothing(),
    {} = set_timeout(Client, "None"),
    nothing(),
    {} = set_timeout(Client, "0.001"),
    {} = next(<<"expired">>),
    end_of(Client).

a_timeout_does_not_wait_for_silence(Config) ->
    protocol(
        "expired = False\n"
        "def data_received(self, data):\n"
        "    if data == b'set':\n"
        "        self.set_timeout(0.02)\n"
        "    self.write_buffer += b'over' if self.expired else b'not!'\n"
        "def timeout_expired(self):\n"
        "    self.expired = True\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "set"),
    {ok, _} = gen_tcp:recv(Client, 4, ?PATIENCE_MS),
    wait_until("it expires while its peer talks", fun() ->
        ok = gen_tcp:send(Client, "x"),
        {ok, Answer} = gen_tcp:recv(Client, 4, ?PATIENCE_MS),
        Answer =:= <<"over">>
    end),
    end_of(Client).

another_thread_may_set_and_take_back_a_timeout(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    none = eval("it.set_timeout(3600)"),
    none = eval("it.set_timeout(0.02)"),
    none = eval("it.set_timeout(None)"),
    nothing(),
    none = eval("it.set_timeout(0)"),
    {} = next(<<"expired">>),
    nothing(),
    end_of(Client).

many_threads_set_timeouts_and_the_last_one_holds(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    exec(
        "def often():\n"
        "    for _ in range(2000):\n"
        "        it.set_timeout(3600)\n"
        "        it.set_timeout(None)\n"
        "threads = [threading.Thread(target=often) for _ in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    ),
    nothing(),
    none = eval("it.set_timeout(0)"),
    {} = next(<<"expired">>),
    end_of(Client).

a_timeout_of_zero_comes_after_the_callback_that_set_it(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.set_timeout(0)\n"
        "    tell('still here')\n"
        "def timeout_expired(self):\n"
        "    tell('expired')\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    {} = next(<<"still here">>),
    {} = next(<<"expired">>),
    nothing(),
    end_of(Client).

a_timeout_may_be_set_again_when_it_expires(Config) ->
    protocol(
        "ticks = 0\n"
        "def connection_made(self, fd, client_info):\n"
        "    self.set_timeout(0)\n"
        "def timeout_expired(self):\n"
        "    self.ticks += 1\n"
        "    if self.ticks == 1000:\n"
        "        return 'close'\n"
        "    self.set_timeout(0)\n"
        "    self.write_buffer += b'.'\n"
    ),
    Client = reactor_case:open(?config(listener, Config)),
    ?assertEqual(binary:copy(<<".">>, 999), await_closed(Client)),
    {<<"timeout">>} = next(<<"lost">>).

a_timeout_of_a_thousand_years_does_no_harm(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    [
        begin
            {} = set_timeout(Client, Seconds),
            nothing(),
            {} = set_timeout(Client, "0"),
            {} = next(<<"expired">>)
        end
     || Seconds <- ["2 ** 31 / 1000", "3e10", "2.0 ** 63", "2.0 ** 64", "sys.float_info.max"]
    ],
    end_of(Client).

the_smallest_timeout_is_a_timeout(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    [
        begin
            {} = set_timeout(Client, Seconds),
            {} = next(<<"expired">>)
        end
     || Seconds <- ["0", "0.0", "-0.0", "5e-324", "1e-9", "True * 0"]
    ],
    nothing(),
    end_of(Client).

what_is_no_time_is_an_error_and_changes_nothing(Config) ->
    protocol(
        "def timeout_expired(self):\n"
        "    tell('expired')\n"
        "    return 'continue'\n"
        "def data_received(self, data):\n"
        "    self.set_timeout(3600)\n"
        "    try:\n"
        "        self.set_timeout(eval(data))\n"
        "    except Exception as error:\n"
        "        tell('refused', type(error).__name__, str(error))\n"
    ),
    Client = connected(Config),
    Cases = [
        {"float('nan')", <<"ValueError">>},
        {"float('inf')", <<"ValueError">>},
        {"-float('inf')", <<"ValueError">>},
        {"-1", <<"ValueError">>},
        {"-1e-9", <<"ValueError">>},
        {"'1'", <<"TypeError">>},
        {"b'1'", <<"TypeError">>},
        {"[]", <<"TypeError">>},
        {"1j", <<"TypeError">>},
        {"10 ** 400", <<"OverflowError">>}
    ],
    [
        begin
            ok = gen_tcp:send(Client, Seconds),
            {Class, Text} = next(<<"refused">>),
            ?assertEqual({Seconds, Wanted}, {Seconds, Class}),
            ?assert(byte_size(Text) > 10)
        end
     || {Seconds, Wanted} <- Cases
    ],
    nothing(),
    end_of(Client).

a_protocol_without_a_connection_has_no_timeout(Config) ->
    exec(
        "def refused(call):\n"
        "    try:\n"
        "        call()\n"
        "    except ValueError as error:\n"
        "        return 'no connection yet' in str(error)\n"
    ),
    [
        ?assert(eval(["refused(lambda: Told().", Call, ")"]))
     || Call <- [
            "set_timeout(1)", "set_timeout(None)", "pause_reading()", "resume_reading()",
            "set_slow_consumer('drop_new')", "connection", "draining()"
        ]
    ],
    %% What comes after the end is left out without a word: the end may come at any time.
    protocol(timeouts_as_told()),
    Client = connected(Config),
    end_of(Client),
    [
        ?assertEqual(none, eval(["it.", Call]))
     || Call <- ["set_timeout(0)", "set_timeout(None)", "pause_reading()", "resume_reading()",
            "set_slow_consumer('drop_new')"]
    ],
    nothing().

a_parked_connection_has_its_timeout(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    {} = set_timeout(Client, "0.2"),
    await_parked(),
    {} = next(<<"expired">>),
    await_parked(),
    none = eval("it.set_timeout(0)"),
    {} = next(<<"expired">>),
    reactor_case:echoes(Client, <<"still served">>),
    end_of(Client).

a_paused_connection_has_its_timeout(Config) ->
    [
        begin
            protocol([timeouts_as_told(), "def pause_it(self):\n    ", Pause, "\n"]),
            Client = connected(Config),
            ok = gen_tcp:send(Client, "!self.set_timeout(0.02) or self.pause_it()"),
            {} = next(<<"done">>),
            ok = gen_tcp:send(Client, "unread"),
            {} = next(<<"expired">>),
            %% It goes on as it was: paused.
            nothing(),
            {ok, <<>>} = recv_now(Client),
            none = eval(Resume),
            {ok, <<"unread">>} = gen_tcp:recv(Client, 6, ?PATIENCE_MS),
            end_of(Client)
        end
     || {Pause, Resume} <- [
            {"return 'pause'", "reactor.resume(it) and None"},
            {"self.pause_reading()", "it.resume_reading()"}
        ]
    ].

a_timeout_expires_after_the_end_of_the_stream(Config) ->
    protocol(
        "def eof_received(self):\n"
        "    self.set_timeout(0.001)\n"
        "    self.write_buffer += b'goodbye'\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:shutdown(Client, write),
    ?assertEqual(<<"goodbye">>, await_closed(Client)),
    {<<"eof">>} = next(<<"lost">>).

a_timeout_expires_while_a_write_is_pending(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 10_000_000\n"
        "    self.set_timeout(0.02)\n"
        "def timeout_expired(self):\n"
        "    tell('expired', len(self.write_buffer) > 0)\n"
        "    return 'abort'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "0123456789"),
    {true} = next(<<"expired">>),
    {<<"aborted">>} = next(<<"lost">>),
    _ = await_closed(Client).

no_timeout_disturbs_a_connection_that_closes(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 10_000_000\n"
        "    self.set_timeout(0.001)\n"
        "    return 'close'\n"
        "def timeout_expired(self):\n"
        "    tell('expired')\n"
        "    return 'abort'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "0123456789"),
    nothing(),
    ?assertEqual(100_000_000, byte_size(await_closed(Client))),
    {<<"closed">>} = next(<<"lost">>).

a_timeout_may_answer_every_action(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.answer = eval(data)\n"
        "    self.set_timeout(0)\n"
        "    globals()['it'] = self\n"
        "def timeout_expired(self):\n"
        "    tell('expired')\n"
        "    self.write_buffer += b'late'\n"
        "    return self.answer\n"
        "def eof_received(self):\n"
        "    return 'abort'\n"
    ),
    [
        begin
            Client = connected(Config),
            ok = gen_tcp:send(Client, Answer),
            {} = next(<<"expired">>),
            Check(Client),
            ok = gen_tcp:close(Client),
            {<<"aborted">>} = next(<<"lost">>)
        end
     || {Answer, Check} <- [
            {"None", fun takes_late/1},
            {"'write_pending'", fun takes_late/1},
            {"'continue'", fun takes_nothing/1},
            {"'read_pending'", fun takes_nothing/1},
            {"'pause'", fun(Client) ->
                takes_nothing(Client),
                ?assert(eval("reactor.resume(it, 'write_pending')")),
                takes_late(Client)
            end}
        ]
    ],
    [
        begin
            Client = connected(Config),
            ok = gen_tcp:send(Client, Answer),
            {} = next(<<"expired">>),
            ?assertEqual(Last, await_closed(Client)),
            {Reason} = next(<<"lost">>)
        end
     || {Answer, Last, Reason} <- [
            {"'close'", <<"late">>, <<"timeout">>},
            {"'abort'", <<>>, <<"aborted">>},
            {"'expire'", <<>>, <<"exception">>},
            {"17", <<>>, <<"exception">>}
        ]
    ].

takes_late(Client) ->
    {ok, <<"late">>} = gen_tcp:recv(Client, 4, ?PATIENCE_MS),
    ok.

takes_nothing(Client) ->
    nothing(),
    {ok, <<>>} = recv_now(Client).

a_timeout_that_raises_costs_its_connection(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.set_timeout(0)\n"
        "    return super().connection_made(fd, client_info)\n"
        "def timeout_expired(self):\n"
        "    raise LookupError('no time')\n"
    ),
    Client = connected(Config),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"exception">>} = next(<<"lost">>),
    #{traceback := Traceback} = await_logged(#{
        level => error, callback => <<"timeout_expired">>, protocol => <<"__main__.P">>
    }),
    ?assertMatch({match, _}, re:run(Traceback, "LookupError: no time")).

each_of_many_connections_has_its_own_timeout(Config) ->
    exec("everyone = []"),
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.number = client_info['number']\n"
        "    everyone.append(self)\n"
        "    return super().connection_made(fd, client_info)\n"
        "def timeout_expired(self):\n"
        "    tell('expired', self.number)\n"
        "    return 'continue'\n"
    ),
    Numbers = lists:seq(1, 300),
    Clients = [connected(Config, #{number => Number}) || Number <- Numbers],
    exec("for one in everyone: one.set_timeout(one.number / 10_000 if one.number % 2 else 3600)"),
    Expired = [element(1, next(<<"expired">>)) || Number <- Numbers, Number rem 2 =:= 1],
    ?assertEqual([Number || Number <- Numbers, Number rem 2 =:= 1], lists:sort(Expired)),
    nothing(),
    [end_of(Client) || Client <- Clients].

connections_with_timeouts_come_and_go_without_a_trace(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.set_timeout(3600)\n"
        "    return super().connection_made(fd, client_info)\n"
    ),
    come_and_go(Config, 1000),
    Before = reactor_case:memory_kb(),
    come_and_go(Config, 2000),
    ?assert(reactor_case:memory_kb() - Before < 8192).

come_and_go(Config, Times) ->
    [end_of(connected(Config)) || _ <- lists:seq(1, Times)].

%% A protocol that does as it is told by its peer, tells when its time has come, and echoes the rest.
timeouts_as_told() ->
    "def connection_made(self, fd, client_info):\n"
    "    globals()['it'] = self\n"
    "    return super().connection_made(fd, client_info)\n"
    "def data_received(self, data):\n"
    "    if data.startswith(b'!'):\n"
    "        action = eval(data[1:])\n"
    "        tell('done')\n"
    "        return action\n"
    "    self.write_buffer += data\n"
    "def timeout_expired(self):\n"
    "    tell('expired')\n"
    "    return 'continue'\n".

set_timeout(Client, Seconds) ->
    set_timeouts(Client, [Seconds]).

set_timeouts(Client, List) ->
    Calls = [["self.set_timeout(", Seconds, ")"] || Seconds <- List],
    ok = gen_tcp:send(Client, ["!", lists:join(" or ", Calls)]),
    next(<<"done">>).

%%--------------------------------------------------------------------------------------------------
%% pause_reading

nothing_is_read_until_reading_is_resumed(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    return super().connection_made(fd, client_info)\n"
        "def data_received(self, data):\n"
        "    self.pause_reading()\n"
        "    tell('data', data)\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "first"),
    [
        begin
            {Now} = next(<<"data">>),
            ok = gen_tcp:send(Client, Then),
            nothing(),
            none = eval("it.resume_reading()")
        end
     || {Now, Then} <- [{<<"first">>, "second"}, {<<"second">>, "third"}, {<<"third">>, "fourth"}]
    ],
    {<<"fourth">>} = next(<<"data">>),
    none = eval("it.resume_reading()"),
    end_of(Client).

reading_can_be_paused_in_every_callback(Config) ->
    protocol(
        "def do(self, callback):\n"
        "    globals()['it'] = self\n"
        "    if self.client_info['in'] == callback:\n"
        "        self.pause_reading()\n"
        "        tell('paused')\n"
        "    return 'continue'\n"
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    self.set_timeout(0 if client_info['in'] == 'timeout_expired' else None)\n"
        "    return 'write_pending' if client_info['in'] == 'write_ready' else self.do('connection_made')\n"
        "def data_received(self, data):\n"
        "    tell('data', data)\n"
        "    return self.do('data_received')\n"
        "def timeout_expired(self):\n"
        "    return self.do('timeout_expired')\n"
        "def message_received(self, message):\n"
        "    return self.do('message_received')\n"
        "def write_ready(self):\n"
        "    self.do('write_ready')\n"
        "    return 'read_pending'\n"
    ),
    [
        begin
            Client = connected(Config, #{in => Callback}),
            [
                begin
                    ok = gen_tcp:send(Client, "go"),
                    {<<"go">>} = next(<<"data">>)
                end
             || Callback =:= data_received
            ],
            [
                ok = py_reactor_connection:send(eval("it.connection"), go)
             || Callback =:= message_received
            ],
            {} = next(<<"paused">>),
            ok = gen_tcp:send(Client, "later"),
            nothing(),
            none = eval("it.resume_reading()"),
            {<<"later">>} = next(<<"data">>),
            none = eval("it.resume_reading()"),
            end_of(Client)
        end
     || Callback <- [connection_made, data_received, timeout_expired, message_received, write_ready]
    ].

reading_that_is_paused_in_connection_made_misses_no_early_data(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.pause_reading()\n"
        "    globals()['it'] = self\n"
        "    return super().connection_made(fd, client_info)\n"
    ),
    Client = reactor_case:connect(?config(listener, Config)),
    ok = gen_tcp:send(Client, "early"),
    ok = reactor_case:handoff(reactor_case:accept(?config(listener, Config))),
    {_} = next(<<"made">>),
    nothing(),
    none = eval("it.resume_reading()"),
    {<<"early">>} = next(<<"data">>),
    end_of(Client).

a_thread_may_pause_a_connection_that_is_parked(Config) ->
    protocol(timeouts_as_told()),
    Client = connected(Config),
    [
        begin
            await_parked(),
            none = eval("it.pause_reading()"),
            nothing(),
            ok = gen_tcp:send(Client, "held"),
            nothing(),
            {ok, <<>>} = recv_now(Client),
            none = eval("it.resume_reading()"),
            {ok, <<"held">>} = gen_tcp:recv(Client, 4, ?PATIENCE_MS)
        end
     || _ <- [1, 2, 3]
    ],
    end_of(Client).

threads_that_pause_and_resume_without_end_lose_nothing(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    return super().connection_made(fd, client_info)\n"
        "def data_received(self, data):\n"
        "    self.write_buffer += data\n"
    ),
    Client = connected(Config),
    exec(
        "go = threading.Event()\n"
        "def flicker(it):\n"
        "    while not go.is_set():\n"
        "        it.pause_reading()\n"
        "        it.resume_reading()\n"
        "threads = [threading.Thread(target=flicker, args=(it,)) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
    ),
    [reactor_case:echoes(Client, rand:bytes(Size)) || Size <- [1, 100, 70_000, 1, 500_000, 3]],
    exec(
        "go.set()\n"
        "for thread in threads: thread.join()\n"
        "it.resume_reading()\n"
    ),
    reactor_case:echoes(Client, <<"and now">>),
    end_of(Client).

what_comes_while_reading_is_paused_waits_in_the_kernel(Config) ->
    protocol(
        "size = 0\n"
        "def connection_made(self, fd, client_info):\n"
        "    import hashlib\n"
        "    self.digest = hashlib.sha256()\n"
        "    self.pause_reading()\n"
        "    globals()['it'] = self\n"
        "    return super().connection_made(fd, client_info)\n"
        "def data_received(self, data):\n"
        "    self.size += len(data)\n"
        "    self.digest.update(data)\n"
        "def eof_received(self):\n"
        "    tell('all', self.size, self.digest.digest())\n"
        "    return 'close'\n"
    ),
    Client = connected(Config),
    Data = rand:bytes(40_000_000),
    Case = self(),
    Sender = spawn_link(fun() ->
        receive
            go -> ok
        end,
        ok = gen_tcp:send(Client, Data),
        ok = gen_tcp:shutdown(Client, write),
        Case ! sent
    end),
    ok = gen_tcp:controlling_process(Client, Sender),
    Sender ! go,
    wait_until("the window is closed", fun() -> no_progress(Client) end),
    %% The peer has most of it still, and we have none.
    {ok, [{send_pend, Unsent}]} = inet:getstat(Client, [send_pend]),
    ?assert(Unsent > 20_000_000),
    ?assertEqual(0, eval("it.size")),
    none = eval("it.resume_reading()"),
    {Size, Digest} = next(<<"all">>),
    ?assertEqual({byte_size(Data), crypto:hash(sha256, Data)}, {Size, Digest}),
    receive sent -> ok after ?PATIENCE_MS -> error(unsent) end,
    {<<"eof">>} = next(<<"lost">>).

%% Whether the kernel takes no more of what a client sends. That nothing happens takes time to see.
no_progress(Client) ->
    {ok, [{send_pend, Before}]} = inet:getstat(Client, [send_pend]),
    timer:sleep(100),
    {ok, [{send_pend, After}]} = inet:getstat(Client, [send_pend]),
    Before > 0 andalso Before =:= After.

output_goes_on_while_reading_is_paused(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.pause_reading()\n"
        "    self.write_buffer += data * 1_000_000\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "0123456789"),
    {ok, Data} = gen_tcp:recv(Client, 10_000_000, ?PATIENCE_MS),
    ?assert(binary:copy(<<"0123456789">>, 1_000_000) =:= Data),
    reset(Client),
    {<<"peer_gone">>} = next(<<"lost">>).

both_ways_to_pause_have_to_be_undone(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    self.pause_reading()\n"
        "    super().connection_made(fd, client_info)\n"
        "    return 'pause'\n"
    ),
    [
        begin
            Client = connected(Config),
            ok = gen_tcp:send(Client, "x"),
            [
                begin
                    nothing(),
                    eval(Step)
                end
             || Step <- Steps
            ],
            {<<"x">>} = next(<<"data">>),
            end_of(Client)
        end
     || Steps <- [
            ["it.resume_reading()", "reactor.resume(it)"],
            ["reactor.resume(it)", "it.resume_reading()"]
        ]
    ].

a_peer_that_resets_is_noticed_while_reading_is_paused(Config) ->
    [noticed_while_paused(Config, Farewell, How)
     || Farewell <- [[], [shutdown], [data], [data, shutdown]], How <- [in_callback, by_thread]].

noticed_while_paused(Config, Farewell, How) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    client_info['how'] == 'in_callback' and self.pause_reading()\n"
        "    return super().connection_made(fd, client_info)\n"
    ),
    Client = connected(Config, #{how => How}),
    [
        begin
            await_parked(),
            none = eval("it.pause_reading()")
        end
     || How =:= by_thread
    ],
    nothing(),
    [ok = gen_tcp:send(Client, "unread") || lists:member(data, Farewell)],
    [ok = gen_tcp:shutdown(Client, write) || lists:member(shutdown, Farewell)],
    nothing(),
    reset(Client),
    {<<"peer_gone">>} = next(<<"lost">>),
    nothing().

the_end_of_the_stream_is_seen_after_reading_is_resumed(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    self.pause_reading()\n"
        "    return super().connection_made(fd, client_info)\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "last words"),
    ok = gen_tcp:shutdown(Client, write),
    nothing(),
    none = eval("it.resume_reading()"),
    {<<"last words">>} = next(<<"data">>),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>),
    ?assertEqual(<<>>, await_closed(Client)).

reading_can_be_paused_on_every_kind_of_descriptor(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    self.pause_reading()\n"
        "    return super().connection_made(fd, client_info)\n"
    ),
    [
        begin
            exec(["ours, theirs = ", Pair]),
            ok = told:handed("os.dup(ours if isinstance(ours, int) else ours.fileno())"),
            {_} = next(<<"made">>),
            exec(["(os.write(theirs, b'x\\n') if isinstance(theirs, int) else theirs.send(b'x\\n'))"]),
            nothing(),
            none = eval("it.resume_reading()"),
            {<<"x\n">>} = next(<<"data">>),
            ?assert(eval("reactor.resume(it, 'abort')")),
            {<<"aborted">>} = next(<<"lost">>),
            exec("for end in ours, theirs: os.close(end) if isinstance(end, int) else end.close()")
        end
     || Pair <- [
            "os.pipe()", "os.openpty()[::-1]", "socket.socketpair()",
            "socket.socketpair(type=socket.SOCK_DGRAM)"
        ]
    ].

%%--------------------------------------------------------------------------------------------------
%% The action `pause'

a_pause_during_a_write_does_not_lose_it(Config) ->
    [
        begin
            protocol(
                [
                    full_kernel(),
                    "    tell('pausing', bytes(self.write_buffer))\n"
                    "    return 'pause'\n"
                ]
            ),
            Client = connected(Config),
            ok = gen_tcp:send(Client, "fill"),
            {} = next(<<"full">>),
            ok = gen_tcp:send(Client, "pause"),
            {<<"rest">>} = next(<<"pausing">>),
            ?assert(eval(["reactor.resume(it", Action, ")"])),
            rest_of_output(Client),
            end_of(Client)
        end
     || Action <- ["", ", 'read_pending'", ", 'write_pending'"]
    ].

%%--------------------------------------------------------------------------------------------------
%% Back-pressure

a_peer_that_sends_and_never_reads_is_not_read_without_end(Config) ->
    protocol(weighed_echo("None")),
    Client = connected(Config),
    Data = rand:bytes(64_000_000),
    {Sender, Receive} = send_all(Client, Data),
    wait_until("the window is closed", fun() -> no_progress(Client) end),
    %% It was read until there was more than the high-water mark, and not once after.
    Held = eval("len(it.write_buffer)"),
    ?assert(Held > ?HIGH_WATER),
    ?assert(Held =< ?HIGH_WATER + ?MAX_READ),
    Reads = counter(reads, Config),
    ?assertEqual(Held, eval("len(it.write_buffer)")),
    %% Then it goes on, and nothing is lost.
    ?assert(Data =:= Receive()),
    ?assert(counter(reads, Config) > Reads),
    ok = Sender(),
    keeps_the_marks(),
    end_of(Client).

%% An echo that notes how much it had to write when it was read, and how much came.
weighed_echo(Answer) ->
    [
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    self.seen = []\n"
        "    return super().connection_made(fd, client_info)\n"
        "def data_received(self, data):\n"
        "    self.seen.append((len(self.write_buffer), len(data)))\n"
        "    self.write_buffer += data\n"
        "    return ", Answer, "\n"
    ].

%% Once there was more than the high-water mark nothing was read until there was less than the low one;
%% and there was reason to look. Where nothing was held before, the kernel may take enough of it at once.
keeps_the_marks() ->
    ?assert(
        eval(
            "all(held <= high for held, _ in it.seen)"
            " and all(then < low for (held, size), (then, _) in zip(it.seen, it.seen[1:])"
            " if held and held + size > high)"
            " and any(held + size > high for held, size in it.seen)",
            #{high => ?HIGH_WATER, low => ?LOW_WATER}
        )
    ).

no_answer_loses_what_is_being_written(Config) ->
    [
        begin
            protocol(weighed_echo(Answer)),
            Client = connected(Config),
            Data = rand:bytes(16_000_000),
            {Sender, Receive} = send_all(Client, Data),
            wait_until("the window is closed", fun() -> no_progress(Client) end),
            ?assert(Data =:= Receive()),
            ok = Sender(),
            keeps_the_marks(),
            end_of(Client)
        end
     || Answer <- [
            "'write_pending'",
            "None if len(self.seen) % 2 else 'write_pending'",
            %% An echo that was read while it writes need not say so again.
            "'read_pending' if self.seen[-1][0] else 'write_pending'",
            "'continue' if self.seen[-1][0] else 'write_pending'"
        ]
    ].

a_timeout_and_a_message_do_not_lose_what_is_being_written(Config) ->
    [
        begin
            protocol(
                [
                    "def connection_made(self, fd, client_info):\n"
                    "    globals()['it'] = self\n"
                    "    return super().connection_made(fd, client_info)\n"
                    "def data_received(self, data):\n"
                    "    self.write_buffer += data * 1_000_000\n"
                    "    return 'write_pending'\n"
                    "def message_received(self, message):\n"
                    "    tell('asked', len(self.write_buffer) > 0)\n"
                    "    return ", Answer, "\n"
                    "def timeout_expired(self):\n"
                    "    return self.message_received('time')\n",
                    Write
                ]
            ),
            Client = connected(Config),
            write_a_flood(Client),
            ok = py_reactor_connection:send(eval("it.connection"), hello),
            {true} = next(<<"asked">>),
            none = eval("it.set_timeout(0)"),
            {true} = next(<<"asked">>),
            rest_of_flood(Client),
            end_of(Client)
        end
     || Answer <- ["None", "'continue'", "'read_pending'", "'write_pending'"], Write <- ["", own_write_ready()]
    ].

own_write_ready() ->
    "def write_ready(self):\n"
    "    del self.write_buffer[:self.write(self.write_buffer)]\n"
    "    return 'continue' if self.write_buffer else 'read_pending'\n".

a_protocol_with_its_own_write_ready_is_not_read_while_it_writes(Config) ->
    protocol([weighed_echo("'write_pending'"), own_write_ready()]),
    Client = connected(Config),
    Data = rand:bytes(16_000_000),
    {Sender, Receive} = send_all(Client, Data),
    wait_until("the window is closed", fun() -> no_progress(Client) end),
    ?assert(Data =:= Receive()),
    ok = Sender(),
    ?assertEqual([0], eval("list({held for held, _ in it.seen})")),
    end_of(Client).

a_request_is_answered_while_earlier_output_is_pending(Config) ->
    protocol(
        [full_kernel(), "    tell('data', data, bytes(self.write_buffer))\n"]
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "fill"),
    {} = next(<<"full">>),
    ok = gen_tcp:send(Client, "next"),
    {<<"next">>, <<"rest">>} = next(<<"data">>),
    rest_of_output(Client),
    end_of(Client).

%% A protocol that makes the kernel refuse more when it is told to, with a little in its buffer. The
%% text goes on in `data_received', for what comes then.
full_kernel() ->
    "def connection_made(self, fd, client_info):\n"
    "    globals()['it'] = self\n"
    "    return super().connection_made(fd, client_info)\n"
    "def data_received(self, data):\n"
    "    if data == b'fill':\n"
    "        while self.write(bytes(65536)):\n"
    "            pass\n"
    "        self.write_buffer += b'rest'\n"
    "        tell('full')\n"
    "        return 'write_pending'\n".

rest_of_output(Client) ->
    rest_of_output(Client, <<"....">>).

rest_of_output(Client, Before) ->
    {ok, Data} = gen_tcp:recv(Client, 0, ?PATIENCE_MS),
    case <<Before/binary, Data/binary>> of
        Tail when binary_part(Tail, byte_size(Tail), -4) =:= <<"rest">> -> ok;
        Tail -> rest_of_output(Client, binary_part(Tail, byte_size(Tail), -4))
    end.

what_once_was_too_much_is_forgotten_when_it_is_written(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    if data.isdigit():\n"
        "        while self.write(bytes(65536)):\n"
        "            pass\n"
        "        self.write_buffer += b'.' * (int(data) - 4) + b'rest'\n"
        "        tell('full')\n"
        "        return 'write_pending'\n"
        "    tell('data', data)\n"
    ),
    Client = connected(Config),
    %% Above the high-water mark: not read until all is written.
    ok = gen_tcp:send(Client, "100000"),
    {} = next(<<"full">>),
    ok = gen_tcp:send(Client, "one"),
    nothing(),
    rest_of_output(Client),
    {<<"one">>} = next(<<"data">>),
    %% Between the marks, and never above: read at once.
    ok = gen_tcp:send(Client, "30000"),
    {} = next(<<"full">>),
    ok = gen_tcp:send(Client, "two"),
    {<<"two">>} = next(<<"data">>),
    rest_of_output(Client),
    end_of(Client).

the_end_of_a_stream_during_a_write_is_told_and_the_write_is_finished(Config) ->
    protocol(
        [
            full_kernel(),
            "def eof_received(self):\n"
            "    tell('eof', bytes(self.write_buffer))\n"
            "    return 'read_pending'\n"
        ]
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "fill"),
    {} = next(<<"full">>),
    ok = gen_tcp:shutdown(Client, write),
    {<<"rest">>} = next(<<"eof">>),
    rest_of_output(Client),
    nothing(),
    reset(Client),
    {<<"peer_gone">>} = next(<<"lost">>).

a_listener_has_marks_of_its_own(Config) ->
    protocol(weighed_echo("None")),
    Port = listener(Config, #{high_water => 3_000_000, low_water => 1_000_000}),
    Client = client(Port),
    {_} = next(<<"made">>),
    Data = rand:bytes(64_000_000),
    {Sender, Receive} = send_all(Client, Data),
    wait_until("the window is closed", fun() -> no_progress(Client) end),
    Held = eval("len(it.write_buffer)"),
    ?assert(Held > 3_000_000),
    ?assert(Held =< 3_000_000 + ?MAX_READ),
    ?assert(Data =:= Receive()),
    ok = Sender(),
    end_of(Client),
    stop_listener(Config).

%%--------------------------------------------------------------------------------------------------
%% What a listener allows

a_silent_connection_ends_with_the_idle_timeout(Config) ->
    protocol("def data_received(self, data):\n    self.write_buffer += data\n"),
    Port = listener(Config, #{idle_timeout => 300}),
    [Silent, Paused] = [client(Port) || _ <- [1, 2]],
    [{_} = next(<<"made">>) || _ <- [1, 2]],
    exec(
        "paused = max(reactor._registry.protocols.items())[1]\n"
        "paused.pause_reading()"
    ),
    ?assertEqual([<<>>, <<>>], [await_closed(Client) || Client <- [Silent, Paused]]),
    [{<<"idle_timeout">>} = next(<<"lost">>) || _ <- [1, 2]],
    await_ended(Config),
    ?assertMatch(#{timeouts := 2, closed_by := #{idle_timeout := 2}}, info(Config)),
    stop_listener(Config).

a_connection_that_talks_does_not_end_with_the_idle_timeout(Config) ->
    protocol("def data_received(self, data):\n    self.write_buffer += data\n"),
    Port = listener(Config, #{idle_timeout => 2000}),
    Silent = client(Port),
    Talking = client(Port),
    [{_} = next(<<"made">>) || _ <- [1, 2]],
    %% As long as it takes for the silent one to end.
    Talk = fun Talk() ->
        reactor_case:echoes(Talking, <<"x">>),
        case gen_tcp:recv(Silent, 0, 10) of
            {error, timeout} -> Talk();
            {error, closed} -> ok
        end
    end,
    ok = Talk(),
    {<<"idle_timeout">>} = next(<<"lost">>),
    reactor_case:echoes(Talking, <<"still here">>),
    ok = gen_tcp:close(Silent),
    end_of(Talking),
    stop_listener(Config).

a_peer_that_says_nothing_of_use_ends_with_the_handshake_timeout(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    return {b'hello': 'read_pending', b'he': 'continue'}.get(data)\n"
    ),
    Port = listener(Config, #{handshake_timeout => 500}),
    [Silent, Dribbling, Unanswered, Greeting] = [client(Port) || _ <- [1, 2, 3, 4]],
    [{_} = next(<<"made">>) || _ <- [1, 2, 3, 4]],
    ok = gen_tcp:send(Greeting, "hello"),
    ok = gen_tcp:send(Dribbling, "he"),
    ok = gen_tcp:send(Unanswered, "hm"),
    Ended = [Silent, Dribbling, Unanswered],
    ?assertEqual([<<>>, <<>>, <<>>], [await_closed(Client) || Client <- Ended]),
    [{<<"handshake_timeout">>} = next(<<"lost">>) || _ <- Ended],
    nothing(),
    end_of(Greeting),
    stop_listener(Config).

a_peer_that_takes_nothing_ends_with_the_write_timeout(Config) ->
    [
        begin
            protocol(
                [
                    "def data_received(self, data):\n"
                    "    self.write_buffer += data * 1_000_000\n"
                    "    return '", Action, "'\n",
                    Write
                ]
            ),
            Port = listener(Config, #{write_timeout => 300}),
            Client = client(Port),
            {_} = next(<<"made">>),
            ok = gen_tcp:send(Client, "0123456789"),
            {<<"write_timeout">>} = next(<<"lost">>),
            await_ended(Config),
            ?assertMatch(#{timeouts := 1, closed_by := #{write_timeout := 1}}, info(Config)),
            _ = await_closed(Client),
            stop_listener(Config)
        end
     || Action <- ["write_pending", "close"], Write <- ["", own_write_ready()]
    ].

a_peer_that_takes_a_little_now_and_then_does_not_end(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 1_000_000\n"
    ),
    Port = listener(Config, #{write_timeout => 1000}),
    Slow = client(Port),
    {_} = next(<<"made">>),
    ok = gen_tcp:send(Slow, "0123456789"),
    %% Until another one has ended which takes nothing.
    Stuck = client(Port),
    {_} = next(<<"made">>),
    ok = gen_tcp:send(Stuck, "0123456789"),
    Taken = take_until(Slow, fun() -> map_get(closed, info(Config)) =:= 1 end, 0),
    {<<"write_timeout">>} = next(<<"lost">>),
    {ok, Rest} = gen_tcp:recv(Slow, 10_000_000 - Taken, ?PATIENCE_MS),
    ?assertEqual(10_000_000, Taken + byte_size(Rest)),
    end_of(Slow),
    _ = await_closed(Stuck),
    stop_listener(Config).

take_until(Client, Fact, Taken) ->
    case Fact() of
        true ->
            Taken;
        false when Taken > 9_900_000 ->
            error(taken_too_fast);
        false ->
            {ok, _} = gen_tcp:recv(Client, 50_000, ?PATIENCE_MS),
            timer:sleep(10),
            take_until(Client, Fact, Taken + 50_000)
    end.

a_timeout_of_the_protocol_and_one_of_the_listener_do_not_disturb_each_other(Config) ->
    protocol(timeouts_as_told()),
    Port = listener(Config, #{idle_timeout => 400, handshake_timeout => 60000}),
    Client = client(Port),
    {_} = next(<<"made">>),
    {} = set_timeout(Client, "0.001"),
    {} = next(<<"expired">>),
    {} = set_timeout(Client, "3600"),
    {<<"idle_timeout">>} = next(<<"lost">>),
    ?assertEqual(<<>>, await_closed(Client)),
    stop_listener(Config).

%%--------------------------------------------------------------------------------------------------
%% What is counted

what_is_counted_is_what_happened(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    if data == b'slow':\n"
        "        time.sleep(0.05)\n"
        "    if data == b'raise':\n"
        "        raise LookupError\n"
        "    self.write_buffer += data\n"
    ),
    Port = listener(Config, #{}),
    Client = client(Port),
    {_} = next(<<"made">>),
    [reactor_case:echoes(Client, Data) || Data <- [<<"one">>, <<"two">>, <<"slow">>]],
    %% A peer may have its answer before that is counted.
    wait_until("all is counted", fun() -> maps:get(bytes_out, info(Config)) end, 10),
    Counted = info(Config),
    ?assertMatch(
        #{accepted := 1, active := 1, closed := 0, reads := 3, bytes_in := 10, bytes_out := 10,
            callbacks := 4, exceptions := 0, timeouts := 0, drops := 0},
        Counted
    ),
    #{longest_callback_us := LongestUs, callback_us := AllUs} = Counted,
    ?assert(LongestUs >= 50_000),
    ?assert(AllUs >= LongestUs),
    ok = gen_tcp:send(Client, "raise"),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"exception">>} = next(<<"lost">>),
    await_ended(Config),
    ?assertMatch(
        #{closed := 1, exceptions := 1, callbacks := 6, closed_by := #{exception := 1, closed := 0}},
        info(Config)
    ),
    stop_listener(Config).

%%--------------------------------------------------------------------------------------------------

%% A listener whose connections the present factory serves; its port.
listener(Config, Options) ->
    {ok, _} = py_reactor:start_listener(name(Config), Options#{ip => loopback}),
    py_reactor:get_port(name(Config)).

stop_listener(Config) ->
    ok = py_reactor:stop_listener(name(Config)).

info(Config) ->
    py_reactor:listener_info(name(Config)).

%% What is counted of a connection is counted after its `connection_lost'.
await_ended(Config) ->
    wait_until("all its connections are over", fun() -> maps:get(active, info(Config)) end, 0).

%% Each case is a process of its own.
name(_Config) ->
    {?MODULE, self()}.

client(Port) ->
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    Client.

end_of(Client) ->
    ok = gen_tcp:close(Client),
    told_at_last(<<"lost">>).

%% The last thing that is told of a connection.
told_at_last(Word) ->
    case next() of
        Message when element(1, Message) =:= Word -> ok;
        _ -> told_at_last(Word)
    end.

%% Has a client that reads nothing be sent ten million bytes.
write_a_flood(Client) ->
    ok = gen_tcp:send(Client, "0123456789"),
    wait_until("the kernel takes no more", fun() -> is_flooded() end).

%% That nothing happens takes time to see.
is_flooded() ->
    Size = fun() -> eval("len(max(reactor._registry.protocols.items())[1].write_buffer)") end,
    Before = Size(),
    timer:sleep(50),
    Before > 0 andalso Before =:= Size().

rest_of_flood(Client) ->
    {ok, Data} = gen_tcp:recv(Client, 10_000_000, ?PATIENCE_MS),
    ?assert(binary:copy(<<"0123456789">>, 1_000_000) =:= Data).

%% Sends from a process of its own. The first fun waits until all is sent, the second receives as much.
send_all(Client, Data) ->
    Sender = spawn_monitor(fun() -> ok = gen_tcp:send(Client, Data) end),
    {
        fun() ->
            {Pid, Monitor} = Sender,
            receive
                {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
            end,
            ok
        end,
        fun() ->
            {ok, Received} = gen_tcp:recv(Client, byte_size(Data), ?PATIENCE_MS),
            Received
        end
    }.

%% What is there now.
recv_now(Client) ->
    case gen_tcp:recv(Client, 0, 0) of
        {error, timeout} -> {ok, <<>>};
        Other -> Other
    end.

await_parked() ->
    wait_until("every connection is parked", fun() ->
        lists:all(
            fun(#{parked := Parked, active := Active}) -> Parked =:= Active end,
            [py_reactor_context:stats(Context) || Context <- py_reactor_pool:contexts()]
        )
    end).

counter(Name) ->
    lists:sum([
        maps:get(Name, py_reactor_context:stats(Context))
     || Context <- py_reactor_pool:contexts()
    ]).

%% How often this connection was read, not the bystander.
counter(reads, _Config) ->
    eval("len(it.seen)").

closed_by(Reason) ->
    lists:sum([
        maps:get(Reason, maps:get(closed_by, py_reactor_context:stats(Context)))
     || Context <- py_reactor_pool:contexts()
    ]).

%%% The examples letter by letter, what a protocol is told of its client, and every attribute,
%%% callback and action of `erlang.reactor.Protocol', over real sockets.
%%%
%%% Every case runs twice: with connections that stay with their worker for a while, and with
%%% connections that are parked in the BEAM after each event.
-module(reactor_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_closed/1, await_logged/1, echoes/2, reset/1, wait_until/2]).
-import(told, [protocol/1, exec/1, eval/1, eval/2, connected/1, next/0, next/1, nothing/0]).

-define(PATIENCE_MS, 20000).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, lingering}, {group, parked_at_once}].

groups() ->
    told:groups(cases()).

cases() ->
    told:cases(?MODULE).

init_per_suite(Config) ->
    Examples = filename:join(told:root(), "examples"),
    [load_example(Examples, Name) || Name <- [echo, accept_loop, http]],
    [{examples, Examples} | Config].

end_per_suite(_Config) ->
    ok.

load_example(Examples, Name) ->
    File = filename:join(Examples, Name),
    {ok, Name, Beam} = compile:file(File, [binary]),
    {module, Name} = code:load_binary(Name, File, Beam).

init_per_group(Group, Config) ->
    told:start(#{linger_ms => told:linger_ms(Group)}),
    ok = py:add_path(?config(examples, Config)),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(_Case, Config) ->
    told:begin_case(Config).

end_per_testcase(_Case, Config) ->
    told:end_case(Config).

%%--------------------------------------------------------------------------------------------------
%% The examples

the_echo_example_echoes_every_byte(_Config) ->
    {Server, Port} = serve_example(echo),
    Clients = [client(Port) || _ <- lists:seq(1, 10)],
    Sizes = [1, 2, 64, 122879, 122880, 122881, 10240, 1],
    [echoes(Client, rand:bytes(Size)) || Size <- Sizes, Client <- Clients],
    [ok = gen_tcp:close(Client) || Client <- Clients],
    stop_example(Server).

the_accept_loop_example_serves_the_echo_written_out_in_python(_Config) ->
    exec(
        "import my_protocols, echo\n"
        "original, my_protocols.MyProtocol = my_protocols.MyProtocol, echo.EchoProtocol"
    ),
    {Server, Port} = serve_example(accept_loop),
    exec("my_protocols.MyProtocol = original"),
    Client = client(Port),
    [echoes(Client, rand:bytes(Size)) || Size <- [1, 2, 64, 122880, 122881, 3_000_000]],
    ok = gen_tcp:shutdown(Client, write),
    ?assertEqual(<<>>, await_closed(Client)),
    stop_example(Server).

the_echo_example_echoes_more_than_the_kernel_buffers(_Config) ->
    {Server, Port} = serve_example(echo),
    Client = client(Port),
    Data = rand:bytes(20_000_000),
    Sender = spawn_link(fun() ->
        receive
            go -> ok = gen_tcp:send(Client, Data)
        end
    end),
    Sender ! go,
    ?assert(Data =:= received(Client, byte_size(Data))),
    ok = gen_tcp:close(Client),
    stop_example(Server).

the_echo_example_ends_when_its_client_does(_Config) ->
    {Server, Port} = serve_example(echo),
    Client = client(Port),
    echoes(Client, <<"last words">>),
    ok = gen_tcp:shutdown(Client, write),
    ?assertEqual(<<>>, await_closed(Client)),
    stop_example(Server).

the_examples_have_the_client_info_that_is_documented(_Config) ->
    Wanted = "{'addr': '127.0.0.1', 'port': port, 'type': 'tcp'}",
    [has_client_info(Program, Wanted) || Program <- [echo, accept_loop]].

has_client_info(Program, Wanted) ->
    exec(
        "import my_protocols\n"
        "class MyProtocol(my_protocols.MyProtocol):\n"
        "    def connection_made(self, fd, client_info):\n"
        "        assert fd == self.fd and client_info is self.client_info\n"
        "        tell('info', client_info, repr(client_info), type(client_info).__name__)\n"
        "original, my_protocols.MyProtocol = my_protocols.MyProtocol, MyProtocol"
    ),
    {Server, Port} = serve_example(Program),
    exec("my_protocols.MyProtocol = original"),
    Client = client(Port),
    {ok, ClientPort} = inet:port(Client),
    Info = #{<<"addr">> => <<"127.0.0.1">>, <<"port">> => ClientPort, <<"type">> => <<"tcp">>},
    {Info, Repr, <<"dict">>} = next(<<"info">>),
    ?assert(eval(["eval(text) == ", Wanted], #{text => Repr, port => ClientPort})),
    ok = gen_tcp:close(Client),
    stop_example(Server).

the_http_example_answers_a_request_in_pieces(_Config) ->
    {Server, Port} = serve_http(),
    Client = client(Port),
    [
        ok = gen_tcp:send(Client, [Byte])
     || Byte <- "GET /some/path?a=1 HTTP/1.0\r\nHost: here\r\n\r\n"
    ],
    ?assertEqual(http_answer("/some/path?a=1"), await_closed(Client)),
    stop_example(Server).

the_http_example_serves_curl(_Config) ->
    {Server, Port} = serve_http(),
    Url = io_lib:format("http://127.0.0.1:~b/some/path", [Port]),
    Answer = os:cmd(["curl -sS -i --max-time 30 ", Url]),
    ?assertEqual(http_answer("/some/path"), list_to_binary(Answer)),
    stop_example(Server).

the_http_example_serves_wrk(_Config) ->
    {Server, Port} = serve_http(),
    Output = os:cmd(io_lib:format("wrk -t 2 -c 20 -d 1 http://127.0.0.1:~b/some/path", [Port])),
    ?assertMatch({match, _}, re:run(Output, "Requests/sec:")),
    ?assertEqual(nomatch, re:run(Output, "Socket errors|Non-2xx")),
    stop_example(Server).

the_http_example_serves_ab(_Config) ->
    {Server, Port} = serve_http(),
    Output = os:cmd(io_lib:format("ab -q -n 1000 -c 20 http://127.0.0.1:~b/some/path", [Port])),
    ?assertMatch({match, _}, re:run(Output, "Complete requests: +1000\\b")),
    ?assertMatch({match, _}, re:run(Output, "Failed requests: +0\\b")),
    stop_example(Server).

%% Runs an example on a port of its own: its listener, or its own accept loop.
serve_example(echo) ->
    {ok, _} = echo:start(0),
    {echo, py_reactor:get_port(echo)};
serve_example(Program) ->
    Case = self(),
    Server = spawn(fun() ->
        Listener = Program:listen(0),
        {ok, Port} = inet:port(Listener),
        Case ! {self(), Port},
        Program:accept_loop(Listener)
    end),
    receive
        {Server, Port} -> {Server, Port}
    after ?PATIENCE_MS -> error(no_listener)
    end.

%% The program takes a port and keeps it: so one that was free a moment ago.
serve_http() ->
    {ok, Probe} = gen_tcp:listen(0, [{reuseaddr, true}]),
    {ok, Port} = inet:port(Probe),
    ok = gen_tcp:close(Probe),
    Server = spawn(fun() -> http:main([integer_to_list(Port)]) end),
    wait_until("the example listens", fun() ->
        case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
            {ok, Client} -> gen_tcp:close(Client) =:= ok;
            {error, econnrefused} -> false
        end
    end),
    {Server, Port}.

stop_example(echo) ->
    ok = py_reactor:stop_listener(echo);
stop_example(Server) ->
    Monitor = monitor(process, Server),
    exit(Server, kill),
    receive
        {'DOWN', Monitor, process, Server, Reason} -> ?assertEqual(killed, Reason)
    end.

client(Port) ->
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    Client.

http_answer(Path) ->
    Body = ["Hello! You requested ", Path],
    iolist_to_binary([
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ",
        integer_to_list(iolist_size(Body)),
        "\r\n\r\n",
        Body
    ]).

received(Client, Size) ->
    {ok, Data} = gen_tcp:recv(Client, Size, ?PATIENCE_MS),
    Data.

%%--------------------------------------------------------------------------------------------------
%% client_info

what_info_leaves_out_is_filled_in_from_the_socket(Config) ->
    Port = fun(Client) -> element(2, inet:port(Client)) end,
    Cases = [
        {#{}, fun(P) -> {<<"127.0.0.1">>, P, <<"tcp">>} end},
        {#{addr => "10.1.2.3"}, fun(P) -> {<<"10.1.2.3">>, P, <<"tcp">>} end},
        {#{port => 7}, fun(_) -> {<<"127.0.0.1">>, 7, <<"tcp">>} end},
        {#{type => tls}, fun(P) -> {<<"127.0.0.1">>, P, <<"tls">>} end},
        {#{<<"type">> => <<"web">>}, fun(P) -> {<<"127.0.0.1">>, P, <<"web">>} end}
    ],
    [
        begin
            {Client, Got} = told_of(Config, Info),
            {Addr, ClientPort, Type} = Wanted(Port(Client)),
            ?assertEqual(#{<<"addr">> => Addr, <<"port">> => ClientPort, <<"type">> => Type}, Got),
            end_of(Client)
        end
     || {Info, Wanted} <- Cases
    ].

addr_may_be_a_charlist_a_tuple_or_a_binary(Config) ->
    Addresses = [
        {"192.168.1.2", <<"192.168.1.2">>},
        {{192, 168, 1, 2}, <<"192.168.1.2">>},
        {<<"example.net">>, <<"example.net">>},
        {{8193, 3512, 0, 0, 0, 0, 0, 1}, <<"2001:db8::1">>},
        {inet:ntoa({0, 0, 0, 0, 0, 0, 0, 1}), <<"::1">>},
        {{local, "/run/some.sock"}, <<"/run/some.sock">>},
        {{local, <<"/run/other.sock">>}, <<"/run/other.sock">>}
    ],
    [
        begin
            {Client, #{<<"addr">> := Got, <<"port">> := 5}} =
                told_of(Config, #{addr => Addr, port => 5, type => tcp}),
            ?assertEqual(Wanted, Got),
            end_of(Client)
        end
     || {Addr, Wanted} <- Addresses
    ].

other_keys_and_values_of_info_are_passed_on(Config) ->
    Info = #{
        addr => "::1", port => 1, type => tcp, tenant => blue, <<"tags">> => [1, 2.5, <<"x">>],
        nested => #{deep => {true, none}}, nodelay => false
    },
    {Client, Got} = told_of(Config, Info),
    ?assertEqual(
        #{
            <<"addr">> => <<"::1">>, <<"port">> => 1, <<"type">> => <<"tcp">>,
            <<"tenant">> => <<"blue">>, <<"tags">> => [1, 2.5, <<"x">>],
            <<"nested">> => #{<<"deep">> => {true, none}}
        },
        Got
    ),
    end_of(Client).

told_of(Config, Info) ->
    protocol("pass"),
    Client = reactor_case:open(?config(listener, Config), Info),
    {Got} = next(<<"made">>),
    {Client, Got}.

%% Closes a client of a protocol that closes at the end of the stream.
end_of(Client) ->
    ok = gen_tcp:close(Client),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

%%--------------------------------------------------------------------------------------------------
%% Attributes and callbacks

attributes_are_there_before_connection_made(Config) ->
    protocol(
        "def __init__(self):\n"
        "    tell('init', self.fd, self.client_info, self.closed, self.peer is None,\n"
        "         self.close_reason is None, type(self.write_buffer).__name__)\n"
    ),
    Client = reactor_case:open(?config(listener, Config)),
    ?assertEqual({<<"init">>, -1, #{}, false, true, true, <<"bytearray">>}, next()),
    {_} = next(<<"made">>),
    end_of(Client).

attributes_tell_of_the_connection(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    tell('made', fd == self.fd, client_info is self.client_info, self.peer, self.closed)\n"
        "    os.fstat(fd)\n"
        "def connection_lost(self):\n"
        "    os.fstat(self.fd)\n"
        "    tell('lost', self.closed, self.close_reason, self.peer,\n"
        "         reactor.get_protocol(self.fd) is None)\n"
    ),
    Client = reactor_case:open(?config(listener, Config), #{addr => "elsewhere", port => 1}),
    {ok, Port} = inet:port(Client),
    ?assertEqual({<<"made">>, true, true, {<<"127.0.0.1">>, Port}, false}, next()),
    ok = gen_tcp:close(Client),
    {} = next(<<"eof">>),
    ?assertEqual({<<"lost">>, true, <<"eof">>, {<<"127.0.0.1">>, Port}, true}, next()),
    nothing().

init_without_super_works(Config) ->
    protocol(
        "def __init__(self):\n"
        "    self.count = 0\n"
        "def data_received(self, data):\n"
        "    self.count += len(data)\n"
        "    self.write_buffer += b'%d.' % self.count\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "abc"),
    <<"3.">> = received(Client, 2),
    ok = gen_tcp:send(Client, "de"),
    <<"5.">> = received(Client, 2),
    end_of(Client).

callbacks_overridden_with_super_work(Config) ->
    protocol(callbacks("super().NAME(ARGS)")),
    Client = reactor_case:open(?config(listener, Config)),
    {<<"connection_made">>} = next(),
    {_} = next(<<"made">>),
    ok = gen_tcp:send(Client, "abc"),
    {<<"data_received">>} = next(),
    {<<"abc">>} = next(<<"data">>),
    {<<"write_ready">>} = next(),
    <<"abc">> = received(Client, 3),
    ok = gen_tcp:close(Client),
    {<<"eof_received">>} = next(),
    {} = next(<<"eof">>),
    {<<"connection_lost">>} = next(),
    {<<"eof">>} = next(<<"lost">>),
    nothing().

callbacks_overridden_without_super_work(Config) ->
    protocol(callbacks("ACTION")),
    Client = reactor_case:open(?config(listener, Config)),
    {<<"connection_made">>} = next(),
    ok = gen_tcp:send(Client, "abc"),
    {<<"data_received">>} = next(),
    %% This write_ready writes nothing; what its buffer holds is sent after the end of the stream.
    {<<"write_ready">>} = next(),
    ok = gen_tcp:shutdown(Client, write),
    {<<"eof_received">>} = next(),
    ok = gen_tcp:close(Client),
    wait_until("nobody says so, but both sides have ended", fun() ->
        eval("[reactor.close_connection(fd) for fd in list(reactor._registry.protocols)"
             " if isinstance(reactor.get_protocol(fd), P)] == [None]")
    end),
    {<<"connection_lost">>} = next(),
    nothing().

%% A protocol with every callback overridden; each tells its name, then does this.
callbacks(Body) ->
    Callback = fun({Name, Args, First, Action}) ->
        Doing = lists:foldl(
            fun({From, To}, Text) -> string:replace(Text, From, To) end,
            Body,
            [{"NAME", Name}, {"ARGS", Args}, {"ACTION", Action}]
        ),
        io_lib:format(
            "def ~s(~s):~n    tell('~s')~n    ~s~n    return ~s~n",
            [Name, lists:join(", ", ["self" | [Args || Args =/= ""]]), Name, First, Doing]
        )
    end,
    lists:map(Callback, [
        {"connection_made", "fd, client_info", "pass", "'continue'"},
        {"data_received", "data", "self.write_buffer += data", "'write_pending'"},
        {"write_ready", "", "pass", "'read_pending'"},
        {"eof_received", "", "pass", "'continue'"},
        {"connection_lost", "", "pass", "'continue'"}
    ]).

%% Skips what is told before this word.
told_at_last(Word) ->
    case element(1, next()) of
        Word -> ok;
        _ -> told_at_last(Word)
    end.

connection_made_may_write_first(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    self.write_buffer += b'220 ready'\n"
        "    return 'write_pending'\n"
    ),
    Client = connected(Config),
    <<"220 ready">> = received(Client, 9),
    end_of(Client).

connection_made_may_write_by_itself(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    tell('written', self.write(b'220 ready'))\n"
    ),
    Client = connected(Config),
    {9} = next(<<"written">>),
    <<"220 ready">> = received(Client, 9),
    end_of(Client).

data_is_never_empty_and_at_most_64_kib(Config) ->
    protocol(
        "sizes = []\n"
        "def data_received(self, data):\n"
        "    assert type(data) is bytes\n"
        "    self.sizes.append(len(data))\n"
        "def eof_received(self):\n"
        "    tell('sizes', sum(self.sizes), min(self.sizes), max(self.sizes))\n"
        "    return super().eof_received()\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, rand:bytes(5_000_000)),
    ok = gen_tcp:close(Client),
    {5_000_000, Least, Most} = next(<<"sizes">>),
    ?assert(Least > 0),
    ?assert(Most =< 122880),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

one_that_never_stops_sending_leaves_room_for_others(Config) ->
    protocol("def data_received(self, data):\n    tell('data', len(data))\n"),
    Flood = reactor_case:open(?config(listener, Config)),
    {_} = next(<<"made">>),
    protocol("def data_received(self, data):\n    self.write_buffer += data\n"),
    Client = connected(Config),
    Sender = spawn_link(fun() ->
        receive
            {go, Case} -> flood(Flood, rand:bytes(1_000_000)), Case ! flooded
        end
    end),
    ok = gen_tcp:controlling_process(Flood, Sender),
    Sender ! {go, self()},
    [echoes(Client, rand:bytes(1000)) || _ <- lists:seq(1, 200)],
    Sender ! stop,
    receive flooded -> ok end,
    ok = gen_tcp:close(Client),
    told_at_last(<<"lost">>, <<"eof">>),
    told_at_last(<<"lost">>, <<"eof">>).

flood(Socket, Data) ->
    ok = gen_tcp:send(Socket, Data),
    receive
        stop -> gen_tcp:close(Socket)
    after 0 -> flood(Socket, Data)
    end.

told_at_last(Word, Argument) ->
    case next() of
        {Word, Argument} -> ok;
        _ -> told_at_last(Word, Argument)
    end.

get_protocol_finds_those_that_are_served(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    tell('made', fd, reactor.get_protocol(fd) is self)\n"
        "def __len__(self):\n"
        "    return 0\n"
    ),
    Client = reactor_case:open(?config(listener, Config)),
    {Fd, true} = next(<<"made">>),
    ?assert(eval("type(reactor.get_protocol(fd)) is P", #{fd => Fd})),
    end_of(Client),
    ?assertEqual(none, eval("reactor.get_protocol(fd)", #{fd => Fd})).

%%--------------------------------------------------------------------------------------------------
%% The factory

factory_may_be_class_function_or_partial(Config) ->
    protocol(
        "def __init__(self, word='none'):\n"
        "    self.word = word\n"
        "def connection_made(self, fd, client_info):\n"
        "    tell('word', self.word)\n"
    ),
    Factories = [
        {"P", <<"none">>},
        {"lambda: P('lambda')", <<"lambda">>},
        {"functools.partial(P, 'partial')", <<"partial">>},
        {"functools.partial(P, word='keyword')", <<"keyword">>},
        {"types.MethodType(P, 'method')", <<"method">>}
    ],
    [
        begin
            exec(["import types\nreactor.set_protocol_factory(", Factory, ")"]),
            Client = reactor_case:open(?config(listener, Config)),
            ?assertEqual({<<"word">>, Word}, next()),
            end_of(Client)
        end
     || {Factory, Word} <- Factories
    ].

factory_of_a_wrong_type_is_a_type_error(_Config) ->
    [
        ?assertMatch(
            {error, {<<"TypeError">>, _, _}},
            py:exec(["reactor.set_protocol_factory(", Wrong, ")"])
        )
     || Wrong <- ["None", "1", "'P'", "Told()", "int", "object", "[Told]", ""]
    ].

factory_set_later_counts_for_new_connections_only(Config) ->
    protocol("def data_received(self, data):\n    tell('first')\n"),
    First = connected(Config),
    protocol("def data_received(self, data):\n    tell('second')\n"),
    Second = connected(Config),
    ok = gen_tcp:send(First, "x"),
    {<<"first">>} = next(),
    ok = gen_tcp:send(Second, "x"),
    {<<"second">>} = next(),
    end_of(First),
    end_of(Second).

%%--------------------------------------------------------------------------------------------------
%% Actions

none_writes_what_is_buffered(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    if data != b'quiet':\n"
        "        self.write_buffer += data\n"
    ),
    Client = connected(Config),
    echoes(Client, <<"loud">>),
    ok = gen_tcp:send(Client, "quiet"),
    echoes(Client, rand:bytes(3_000_000)),
    end_of(Client).

continue_keeps_on_reading_and_writing(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data\n"
        "    return 'write_pending' if data.endswith(b'.') else 'continue'\n"
        "def write_ready(self):\n"
        "    if not self.write_buffer:\n"
        "        return 'read_pending'\n"
        "    tell('wrote', self.write(self.write_buffer[:1]))\n"
        "    del self.write_buffer[:1]\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    [
        begin
            ok = gen_tcp:send(Client, Part),
            wait_until("it was read", fun() -> buffered_at_least(Size) end)
        end
     || {Part, Size} <- [{"ab", 2}, {"cd", 4}]
    ],
    ok = gen_tcp:send(Client, "e."),
    [{1} = next(<<"wrote">>) || _ <- lists:seq(1, 6)],
    <<"abcde.">> = received(Client, 6),
    end_of(Client).

buffered_at_least(Size) ->
    eval(
        "any(len(p.write_buffer) >= size for p in reactor._registry.protocols.values())",
        #{size => Size}
    ).

close_sends_what_is_buffered(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 2\n"
        "    return 'close'\n"
        "def write_ready(self):\n"
        "    tell('asked')\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "ab"),
    ?assertEqual(<<"abab">>, await_closed(Client)),
    {<<"closed">>} = next(<<"lost">>),
    nothing().

close_ends_from_every_callback(Config) ->
    [ends_from(Config, Callback, "close", <<"closed">>) || Callback <- answering_callbacks()].

abort_ends_from_every_callback(Config) ->
    [ends_from(Config, Callback, "abort", <<"aborted">>) || Callback <- answering_callbacks()].

answering_callbacks() ->
    ["connection_made", "data_received", "write_ready", "eof_received"].

%% The end of the stream stays the reason if the protocol only closes after it.
ends_from(Config, "eof_received" = Callback, "close" = Action, _Reason) ->
    ends_from(Config, Callback, Action, <<"eof">>, <<"held back">>);
ends_from(Config, Callback, "close" = Action, Reason) ->
    ends_from(Config, Callback, Action, Reason, <<"held back">>);
ends_from(Config, Callback, "abort" = Action, Reason) ->
    ends_from(Config, Callback, Action, Reason, <<>>).

ends_from(Config, Callback, Action, Reason, Sent) ->
    protocol(
        io_lib:format(
            "def ~s(self, *args):~n"
            "    self.write_buffer[:] = b'held back'~n"
            "    return '~s'~n",
            [Callback, Action]
        )
    ),
    [
        exec("P.data_received = lambda self, data: 'write_pending'")
     || Callback =:= "write_ready"
    ],
    Client = reactor_case:open(?config(listener, Config)),
    _ = gen_tcp:send(Client, "x"),
    _ = gen_tcp:shutdown(Client, write),
    ?assertEqual(Sent, await_closed(Client)),
    told_at_last(<<"lost">>, Reason),
    nothing().

close_delivers_a_large_buffer_to_a_slow_reader(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 3_000_000\n"
        "    return 'close'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "0123456789"),
    slowly(Client, 30_000_000),
    {<<"closed">>} = next(<<"lost">>).

slowly(Client, 0) ->
    ?assertEqual({error, closed}, gen_tcp:recv(Client, 0, ?PATIENCE_MS)),
    ok = gen_tcp:close(Client);
slowly(Client, Left) ->
    Size = min(Left, 1_000_000),
    Data = received(Client, Size),
    ?assert(Data =:= binary:copy(<<"0123456789">>, Size div 10)),
    timer:sleep(5),
    slowly(Client, Left - Size).

abort_throws_a_large_buffer_away(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += bytes(30_000_000)\n"
        "    return 'write_pending'\n"
        "def connection_made(self, fd, client_info):\n"
        "    global it\n"
        "    it = self\n"
        "    super().connection_made(fd, client_info)\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    wait_until("it is blocked", fun() -> eval("0 < len(it.write_buffer) < 30_000_000") end),
    ?assert(eval("reactor.resume(it, 'abort')")),
    {<<"aborted">>} = next(<<"lost">>),
    ?assert(byte_size(await_closed(Client)) < 30_000_000).

pause_stops_reading_until_a_thread_resumes(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    tell('data', data)\n"
        "    self.go = threading.Event()\n"
        "    def wait(go=self.go):\n"
        "        go.wait()\n"
        "        tell('resumed', reactor.resume(self))\n"
        "    self.thread = threading.Thread(target=wait)\n"
        "    self.thread.start()\n"
        "    globals()['it'] = self\n"
        "    return 'pause'\n"
    ),
    Client = connected(Config),
    [
        begin
            ok = gen_tcp:send(Client, Data),
            {Data} = next(<<"data">>),
            ok = gen_tcp:send(Client, Data),
            nothing(),
            none = eval("it.go.set()"),
            {true} = next(<<"resumed">>),
            {Data} = next(<<"data">>),
            none = eval("it.go.set()"),
            {true} = next(<<"resumed">>)
        end
     || Data <- [<<"one">>, <<"two">>]
    ],
    end_of(Client).

pause_works_from_every_callback(Config) ->
    [pauses_from(Config, Callback) || Callback <- answering_callbacks()].

pauses_from(Config, Callback) ->
    protocol(
        io_lib:format(
            "def ~s(self, *args):~n"
            "    tell('pausing', self.fd)~n"
            "    return 'pause'~n",
            [Callback]
        )
    ),
    [
        exec("P.data_received = lambda self, data: 'write_pending'")
     || Callback =:= "write_ready"
    ],
    Client = reactor_case:open(?config(listener, Config)),
    [{_} = next(<<"made">>) || Callback =/= "connection_made"],
    _ = gen_tcp:send(Client, "x"),
    ok = gen_tcp:shutdown(Client, write),
    Skip = fun Skip() ->
        case next() of
            {<<"pausing">>, Fd} -> Fd;
            _ -> Skip()
        end
    end,
    Fd = Skip(),
    nothing(),
    ?assert(eval("reactor.resume(reactor.get_protocol(fd), 'close')", #{fd => Fd})),
    ?assertEqual(<<>>, await_closed(Client)),
    told_at_last(<<"lost">>),
    nothing().

pause_ends_when_another_connection_resumes_it(Config) ->
    protocol(
        "waiting = []\n"
        "def data_received(self, data):\n"
        "    if data == b'wait':\n"
        "        self.waiting.append(self)\n"
        "        self.write_buffer += b'over'\n"
        "        return 'pause'\n"
        "    tell(*(reactor.resume(other, 'write_pending') for other in self.waiting))\n"
        "    self.waiting.clear()\n"
    ),
    [First, Second] = [connected(Config) || _ <- [1, 2]],
    ok = gen_tcp:send(First, "wait"),
    wait_until("it waits", fun() -> eval("len(P.waiting) == 1") end),
    ok = gen_tcp:send(Second, "go"),
    <<"over">> = received(First, 4),
    receive {true} -> ok after ?PATIENCE_MS -> error(not_resumed) end,
    end_of(First),
    end_of(Second).

resume_takes_every_action(Config) ->
    exec("def it():\n    return everyone[-1]\neveryone = []"),
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    everyone.append(self)\n"
        "    return 'pause'\n"
    ),
    [
        begin
            Client = connected(Config),
            ok = gen_tcp:send(Client, "data"),
            Check(Client),
            ok = gen_tcp:close(Client),
            told_at_last(<<"lost">>)
        end
     || Check <- [
            fun(_) ->
                ?assert(eval("reactor.resume(it(), 'continue')")),
                nothing(),
                ?assert(eval("reactor.resume(it())")),
                {<<"data">>} = next(<<"data">>)
            end,
            fun(Client) ->
                exec("it().write_buffer.extend(b'x')"),
                ?assert(eval("reactor.resume(it(), 'write_pending')")),
                <<"x">> = received(Client, 1),
                {<<"data">>} = next(<<"data">>)
            end,
            fun(_) -> ?assert(eval("reactor.resume(it(), 'pause')")), nothing(),
                ?assert(eval("reactor.resume(it(), 'read_pending')")) end,
            fun(Client) ->
                ?assert(eval("it().write_buffer.extend(b'xy') or reactor.resume(it(), 'close')")),
                {ok, <<"xy">>} = gen_tcp:recv(Client, 2, ?PATIENCE_MS),
                {error, closed} = gen_tcp:recv(Client, 0, ?PATIENCE_MS)
            end,
            fun(Client) ->
                ?assert(eval("it().write_buffer.extend(b'xy') or reactor.resume(it(), 'abort')")),
                {error, _} = gen_tcp:recv(Client, 0, ?PATIENCE_MS)
            end
        ]
    ].

resume_refuses_what_is_no_action(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    for word in 'Close', '', 'close ', 'nothing':\n"
        "        try:\n"
        "            reactor.resume(self, word)\n"
        "        except ValueError as error:\n"
        "            tell('refused', word in str(error))\n"
        "    try:\n"
        "        reactor.resume(Told())\n"
        "    except ValueError:\n"
        "        tell('refused', True)\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    [{true} = next(<<"refused">>) || _ <- lists:seq(1, 5)],
    end_of(Client).

resume_of_a_closed_connection_is_false(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    globals()['it'] = self\n"
        "    super().connection_made(fd, client_info)\n"
    ),
    Client = connected(Config),
    end_of(Client),
    ?assertNot(eval("reactor.resume(it)")),
    ?assertNot(eval("reactor.resume(it, 'close')")).

a_paused_connection_notices_that_its_peer_vanished(Config) ->
    protocol("def data_received(self, data):\n    tell('pausing')\n    return 'pause'\n"),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    {<<"pausing">>} = next(),
    reset(Client),
    {<<"peer_gone">>} = next(<<"lost">>),
    nothing().

write_pending_is_asked_again_until_all_is_written(Config) ->
    protocol(
        "asked = 0\n"
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 5_000_000\n"
        "    return 'write_pending'\n"
        "def write_ready(self):\n"
        "    self.asked += 1\n"
        "    written = self.write(self.write_buffer)\n"
        "    del self.write_buffer[:written]\n"
        "    if self.write_buffer:\n"
        "        return 'write_pending'\n"
        "    tell('asked', self.asked)\n"
        "    return 'read_pending'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "ab"),
    ?assert(binary:copy(<<"ab">>, 5_000_000) =:= received(Client, 10_000_000)),
    {Times} = next(<<"asked">>),
    %% Neither once, nor as often as a loop that does not wait.
    ?assert(Times > 1),
    ?assert(Times < 20_000),
    end_of(Client).

%%--------------------------------------------------------------------------------------------------
%% How connections end

output_goes_on_after_the_clients_half_close(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += data * 1_000_000\n"
        "    return 'write_pending'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "0123456789"),
    ok = gen_tcp:shutdown(Client, write),
    slowly(Client, 10_000_000),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

eof_received_may_go_on_writing(Config) ->
    protocol(
        "left = 50\n"
        "def eof_received(self):\n"
        "    tell('eof')\n"
        "    self.write_buffer += b'after ' * 20_000\n"
        "    return 'write_pending'\n"
        "def write_ready(self):\n"
        "    if not self.write_buffer:\n"
        "        self.left -= 1\n"
        "        if not self.left:\n"
        "            return 'close'\n"
        "        self.write_buffer += b'after ' * 20_000\n"
        "    del self.write_buffer[:self.write(self.write_buffer)]\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:shutdown(Client, write),
    ?assert(binary:copy(<<"after ">>, 50 * 20_000) =:= await_closed(Client)),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

eof_received_may_keep_the_connection_for_later(Config) ->
    protocol(
        "def eof_received(self):\n"
        "    tell('eof', self.fd)\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:shutdown(Client, write),
    {Fd} = next(<<"eof">>),
    nothing(),
    [
        begin
            ?assertEqual(3, eval("reactor.get_protocol(fd).write(b'too')", #{fd => Fd})),
            <<"too">> = received(Client, 3)
        end
     || _ <- [1, 2]
    ],
    none = eval("reactor.close_connection(fd)", #{fd => Fd}),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"eof">>} = next(<<"lost">>).

eof_received_is_called_once_only(Config) ->
    protocol(
        "def eof_received(self):\n"
        "    tell('eof', self.fd)\n"
        "    return 'read_pending'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:shutdown(Client, write),
    {Fd} = next(<<"eof">>),
    Served = "reactor.resume(reactor.get_protocol(fd), action)",
    [
        begin
            ?assert(eval(Served, #{fd => Fd, action => Action})),
            nothing()
        end
     || Action <- ['read_pending', 'write_pending', 'continue', 'pause', 'read_pending']
    ],
    ?assert(eval(Served, #{fd => Fd, action => close})),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"eof">>} = next(<<"lost">>),
    nothing().

a_peer_that_resets_after_its_half_close_is_noticed(Config) ->
    protocol(
        "def eof_received(self):\n"
        "    tell('eof')\n"
        "    return 'continue'\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:shutdown(Client, write),
    {} = next(<<"eof">>),
    reset(Client),
    {_} = next(<<"lost">>),
    nothing().

a_reset_is_one_connection_lost(Config) ->
    protocol("pass"),
    Client = connected(Config),
    reset(Client),
    {<<"reset">>} = next(<<"lost">>),
    nothing().

a_reset_while_a_write_waits_is_one_connection_lost(Config) ->
    [
        begin
            protocol(["count = 0\ndef data_received(self, data):\n"
                      "    self.write_buffer += bytes(30_000_000)\n"
                      "    globals()['it'] = self\n"
                      "    return 'write_pending'\n", WriteReady]),
            Client = connected(Config),
            ok = gen_tcp:send(Client, "x"),
            wait_until("it is blocked", fun() ->
                eval("'it' in globals() and 0 < len(it.write_buffer) < 30_000_000")
            end),
            reset(Client),
            {<<"reset">>} = next(<<"lost">>),
            nothing(),
            exec("del it")
        end
     || WriteReady <- [
            "",
            "def write_ready(self):\n"
            "    del self.write_buffer[:self.write(self.write_buffer)]\n"
            "    return 'continue'\n"
        ]
    ].

close_reason_says_why_it_ended(Config) ->
    Endings = [
        {"return 'close'", <<"closed">>},
        {"return 'abort'", <<"aborted">>},
        {"raise ValueError('mine')", <<"exception">>},
        {"return 'nonsense'", <<"exception">>},
        {"return 1", <<"exception">>},
        {"os.close(self.fd)", <<"descriptor_gone">>}
    ],
    [
        begin
            protocol(["def data_received(self, data):\n    ", Ending]),
            Client = connected(Config),
            ok = gen_tcp:send(Client, "x"),
            case Reason of
                %% The kernel tells nobody: it is found out at the next event.
                <<"descriptor_gone">> -> gen_tcp:close(Client);
                _ -> await_closed(Client)
            end,
            ?assertEqual({<<"lost">>, Reason}, next())
        end
     || {Ending, Reason} <- Endings
    ].

close_connection_closes_a_served_one(Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.write_buffer += b'held back'\n"
        "    tell('made', fd)\n"
        "    return 'continue'\n"
    ),
    Client = reactor_case:open(?config(listener, Config)),
    {Fd} = next(<<"made">>),
    none = eval("reactor.close_connection(fd)", #{fd => Fd}),
    ?assertEqual(<<"held back">>, await_closed(Client)),
    {<<"closed">>} = next(<<"lost">>),
    ?assertMatch(
        {error, {<<"ValueError">>, _, _}},
        py:eval("reactor.close_connection(fd)", #{fd => Fd})
    ).

unread_input_does_not_destroy_the_last_output(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += b'enough' * 10_000\n"
        "    return 'close'\n"
    ),
    [
        begin
            Client = connected(Config),
            ok = gen_tcp:send(Client, rand:bytes(200_000)),
            ?assert(binary:copy(<<"enough">>, 10_000) =:= await_closed(Client)),
            {<<"closed">>} = next(<<"lost">>)
        end
     || _ <- lists:seq(1, 20)
    ].

%%--------------------------------------------------------------------------------------------------
%% read and write

write_takes_anything_like_bytes(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    import array, mmap\n"
        "    with mmap.mmap(-1, 4) as shared:\n"
        "        shared[:] = b'mmap'\n"
        "        things = (data, bytearray(data), memoryview(data)[1:], memoryview(data)[::2],\n"
        "                  array.array('B', data), shared, b'', bytearray())\n"
        "        tell('written', [self.write(thing) for thing in things])\n"
        "    for wrong in 'text', None, 5, ['list'], array.array('I', [1]):\n"
        "        try:\n"
        "            self.write(wrong)\n"
        "        except (TypeError, BufferError) as error:\n"
        "            tell('refused', type(wrong).__name__)\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "abcd"),
    {Lengths} = next(<<"written">>),
    ?assertEqual([4, 4, 3, 2, 4, 4, 0, 0], Lengths),
    ?assertEqual(<<"abcdabcdbcdacabcdmmap">>, received(Client, 21)),
    ?assertEqual(
        [<<"str">>, <<"NoneType">>, <<"int">>, <<"list">>, <<"array">>],
        [element(1, next(<<"refused">>)) || _ <- lists:seq(1, 5)]
    ),
    end_of(Client).

write_says_how_much_the_kernel_took(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    block, total = bytes(100_000), 0\n"
        "    while written := self.write(block):\n"
        "        total += written\n"
        "    tell('took', total, self.write(b'more'))\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    {Total, 0} = next(<<"took">>),
    ?assert(Total > 0),
    ok = gen_tcp:shutdown(Client, write),
    ?assertEqual(Total, byte_size(await_closed(Client))),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

write_to_a_closed_connection_is_a_broken_pipe(Config) ->
    protocol(
        "def connection_lost(self):\n"
        "    globals()['it'] = self\n"
        "    super().connection_lost()\n"
    ),
    Client = connected(Config),
    end_of(Client),
    wait_until("it is closed for other threads", fun() ->
        case py:eval("it.write(b'x')") of
            {error, {<<"BrokenPipeError">>, _, _}} -> true;
            {ok, _} -> false
        end
    end),
    ?assertEqual(<<>>, eval("it.read(1)")).

read_and_write_before_the_connection_are_value_errors(_Config) ->
    [
        ?assertMatch({error, {<<"ValueError">>, _, _}}, py:eval(Expression))
     || Expression <- ["Told().write(b'x')", "Told().read(1)", "Told().write_ready()"]
    ].

write_from_another_thread_arrives(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    def write():\n"
        "        for number in range(1000):\n"
        "            assert self.write(b'%04d' % number) == 4\n"
        "    threading.Thread(target=write).start()\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    Wanted = iolist_to_binary([io_lib:format("~4..0b", [N]) || N <- lists:seq(0, 999)]),
    ?assertEqual(Wanted, received(Client, 4000)),
    end_of(Client).

a_failed_write_closes_whatever_the_callback_says(Config) ->
    [
        begin
            protocol(
                ["def data_received(self, data):\n"
                 "    tell('data', data)\n"
                 "    globals()['go'].wait()\n"
                 "    try:\n"
                 "        while self.write(bytes(1000)):\n"
                 "            pass\n"
                 "        self.write(b'again')\n"
                 "    except BrokenPipeError:\n"
                 "        tell('broken')\n"
                 "    return '", Action, "'\n"]
            ),
            exec("go = threading.Event()"),
            Client = connected(Config),
            ok = gen_tcp:send(Client, "x"),
            {<<"x">>} = next(<<"data">>),
            reset(Client),
            none = eval("go.set()"),
            {<<"broken">>} = next(),
            {<<"reset">>} = next(<<"lost">>),
            nothing()
        end
     || Action <- ["continue", "write_pending", "read_pending", "pause", "close"]
    ].

read_gets_what_is_already_there(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    tell('data', data)\n"
        "    globals()['go'].wait()\n"
        "    tell('read', self.read(3), self.read(100_000))\n"
    ),
    exec("go = threading.Event()"),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    {<<"x">>} = next(<<"data">>),
    ok = gen_tcp:send(Client, "abcdef"),
    none = eval("go.set()"),
    {<<"abc">>, <<"def">>} = next(<<"read">>),
    end_of(Client).

read_of_nothing_is_a_blocking_io_error(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    try:\n"
        "        self.read(10)\n"
        "    except BlockingIOError as error:\n"
        "        tell('blocked', error.errno == errno.EAGAIN)\n"
        "    for size in 0, -1, 'x', 2**70:\n"
        "        try:\n"
        "            tell('read', self.read(size))\n"
        "        except (ValueError, OverflowError, TypeError) as error:\n"
        "            tell(type(error).__name__)\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    {true} = next(<<"blocked">>),
    ?assertEqual(
        [{<<"ValueError">>}, {<<"OverflowError">>}, {<<"TypeError">>}, {<<"OverflowError">>}],
        [next() || _ <- lists:seq(1, 4)]
    ),
    end_of(Client).

read_is_empty_only_at_the_end(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    tell('data', data)\n"
        "    globals()['go'].wait()\n"
        "    tell('read', self.read(10), self.read(10), self.read(10))\n"
        "def eof_received(self):\n"
        "    tell('eof')\n"
        "    tell('read', self.read(10))\n"
        "    return 'close'\n"
    ),
    exec("go = threading.Event()"),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    {<<"x">>} = next(<<"data">>),
    ok = gen_tcp:send(Client, "end"),
    ok = gen_tcp:shutdown(Client, write),
    none = eval("go.set()"),
    {<<"end">>, <<>>, <<>>} = next(<<"read">>),
    {} = next(<<"eof">>),
    {<<>>} = next(<<"read">>),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"eof">>} = next(<<"lost">>).

%%--------------------------------------------------------------------------------------------------
%% What protocols say

logging_in_callbacks_reaches_the_logger(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    import logging\n"
        "    level = data.decode()\n"
        "    getattr(logging.getLogger('kinds.' + level), level)('a %s line', level)\n"
        "    tell('logged')\n"
    ),
    Client = connected(Config),
    [
        begin
            ok = gen_tcp:send(Client, atom_to_binary(Level)),
            {<<"logged">>} = next(),
            Line = await_logged(#{
                level => Level,
                python => iolist_to_binary(io_lib:format("a ~s line", [Level])),
                logger => iolist_to_binary(["kinds.", atom_to_binary(Level)])
            }),
            ?assertMatch(#{file := _, line := _}, Line)
        end
        %% What is below `notice' OTP itself does not let through unless told to.
     || Level <- [warning, error, critical]
    ],
    end_of(Client).

warnings_in_callbacks_reach_the_logger(Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    import warnings\n"
        "    # Python warns of the same thing once.\n"
        "    warnings.warn(f'mind the gap at {time.monotonic_ns()}')\n"
    ),
    Client = connected(Config),
    ok = gen_tcp:send(Client, "x"),
    #{python := Text} = await_logged(#{level => warning, logger => <<"py.warnings">>}),
    ?assertMatch({match, _}, re:run(Text, "mind the gap")),
    end_of(Client).

an_exception_is_logged_with_class_peer_and_traceback(Config) ->
    protocol("def data_received(self, data):\n    raise LookupError('nothing here')\n"),
    Client = connected(Config),
    {ok, Port} = inet:port(Client),
    ok = gen_tcp:send(Client, "x"),
    ?assertEqual(<<>>, await_closed(Client)),
    {<<"exception">>} = next(<<"lost">>),
    #{traceback := Traceback} = await_logged(#{
        level => error,
        callback => <<"data_received">>,
        protocol => <<"__main__.P">>,
        peer => iolist_to_binary(io_lib:format("127.0.0.1:~b", [Port]))
    }),
    ?assertMatch({match, _}, re:run(Traceback, "LookupError: nothing here")).

print_in_callbacks_goes_to_standard_output(_Config) ->
    Program =
        "{ok, _} = application:ensure_all_started(py_reactor),"
        "ok = py:exec(\"import erlang.reactor as reactor\\n"
        "class P(reactor.Protocol):\\n"
        "    def data_received(self, data):\\n"
        "        print('printed', data.decode())\\n"
        "        return 'close'\\n"
        "reactor.set_protocol_factory(P)\"),"
        "{ok, L} = gen_tcp:listen(0, [{active, false}]),"
        "{ok, Port} = inet:port(L),"
        "{ok, C} = gen_tcp:connect({127, 0, 0, 1}, Port, [{active, false}]),"
        "{ok, S} = gen_tcp:accept(L),"
        "ok = py_reactor_context:handoff(S, #{}),"
        "ok = gen_tcp:send(C, \"by a callback\"),"
        "{error, closed} = gen_tcp:recv(C, 0),"
        "halt().",
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Port = open_port({spawn_executable, Erl}, [
        {args, ["-noinput", "-pa", filename:dirname(code:which(py)), "-eval", Program]},
        exit_status, binary
    ]),
    ?assertEqual({0, <<"printed by a callback\n">>}, outcome(Port, <<>>)).

outcome(Port, Output) ->
    receive
        {Port, {data, Data}} -> outcome(Port, <<Output/binary, Data/binary>>);
        {Port, {exit_status, Status}} -> {Status, Output}
    after ?PATIENCE_MS -> error({no_end, Output})
    end.

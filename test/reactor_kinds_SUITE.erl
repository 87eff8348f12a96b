%%% Every kind of descriptor that can be handed over, and every way to name it.
%%%
%%% Every case runs twice: with connections that stay with their worker for a while, and with
%%% connections that are parked in the BEAM after each event.
-module(reactor_kinds_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_closed/1, echoes/2, wait_until/2]).
-import(told, [protocol/1, exec/1, eval/1, eval/2, handed/1, next/0, next/1, nothing/0]).

-define(PATIENCE_MS, 20000).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [{group, lingering}, {group, parked_at_once}].

groups() ->
    told:groups(told:cases(?MODULE)).

init_per_group(Group, Config) ->
    told:start(#{linger_ms => told:linger_ms(Group)}),
    Config.

end_per_group(_Group, _Config) ->
    reactor_case:stop().

init_per_testcase(_Case, Config) ->
    Begun = told:begin_case(Config),
    %% Unix sockets have short paths: not the folder of the case.
    Folder = eval("tempfile.mkdtemp(prefix='kinds')"),
    exec(["folder = '", Folder, "'\n", helpers()]),
    [{folder, binary_to_list(Folder)} | Begun].

end_per_testcase(_Case, Config) ->
    _ = file:del_dir_r(?config(folder, Config)),
    told:end_case(Config).

%% In Python: `ours' is to be handed over as `give(ours)', `theirs' is the other end.
helpers() ->
    <<
        "def give(end):\n"
        "    return end.detach() if hasattr(end, 'detach') else end\n"
        "def pair(kind=socket.SOCK_STREAM):\n"
        "    global ours, theirs\n"
        "    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)\n"
        "    theirs.settimeout(20)\n"
        "def received(size):\n"
        "    data = b''\n"
        "    while len(data) < size:\n"
        "        part = theirs.recv(size - len(data))\n"
        "        if not part:\n"
        "            break\n"
        "        data += part\n"
        "    return data\n"
        "class Echo(Told):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data\n"
        "reactor.set_protocol_factory(Echo)\n"
    >>.

%%--------------------------------------------------------------------------------------------------
%% Streams

tcp_over_ipv6_is_served_like_any(_Config) ->
    {Client, Server} = told:stream([inet6, {ip, {0, 0, 0, 0, 0, 0, 0, 1}}], [inet6]),
    {ok, Port} = inet:port(Client),
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    tell('made', client_info, self.peer)\n"
        "def data_received(self, data):\n"
        "    self.write_buffer += data\n"
    ),
    ok = py_reactor_context:handoff(Server, #{}),
    {Info, Peer} = next(<<"made">>),
    ?assertEqual(
        #{<<"addr">> => <<"::1">>, <<"port">> => Port, <<"type">> => <<"tcp">>}, Info
    ),
    ?assertEqual({<<"::1">>, Port, 0, 0}, Peer),
    echoes(Client, rand:bytes(300_000)),
    end_of(Client).

unix_stream_is_served_like_tcp(Config) ->
    {Client, Server} = told:stream([{ifaddr, {local, path(Config)}}], [local]),
    ok = py_reactor_context:handoff(Server, #{}),
    {Info} = next(<<"made">>),
    ?assertEqual(#{<<"type">> => <<"unix">>}, Info),
    echoes(Client, rand:bytes(3_000_000)),
    end_of(Client).

unix_stream_of_a_bound_client_has_its_address(Config) ->
    {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ifaddr, {local, path(Config)}}]),
    exec(
        "theirs = socket.socket(socket.AF_UNIX)\n"
        "theirs.bind(folder + '/client')\n"
        "theirs.connect(folder + '/socket')"
    ),
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    tell('made', client_info, self.peer)\n"
    ),
    ok = py_reactor_context:handoff(reactor_case:accept(Listener), #{}),
    ok = gen_tcp:close(Listener),
    {Info, Peer} = next(<<"made">>),
    Path = list_to_binary(filename:join(?config(folder, Config), "client")),
    ?assertEqual(#{<<"addr">> => Path, <<"type">> => <<"unix">>}, Info),
    ?assertEqual({Path}, Peer),
    exec("theirs.close()"),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

unix_stream_of_an_abstract_client_has_its_address(Config) ->
    {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ifaddr, {local, path(Config)}}]),
    exec(
        "theirs = socket.socket(socket.AF_UNIX)\n"
        "theirs.bind('\\0py_reactor kinds')\n"
        "theirs.connect(folder + '/socket')"
    ),
    ok = py_reactor_context:handoff(reactor_case:accept(Listener), #{}),
    ok = gen_tcp:close(Listener),
    {Info} = next(<<"made">>),
    ?assertEqual(#{<<"addr">> => <<0, "py_reactor kinds">>, <<"type">> => <<"unix">>}, Info),
    exec("theirs.close()"),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

unix_stream_serves_socat_and_nc(Config) ->
    Clients = ["socat -t 20 - UNIX-CONNECT:~s", "nc -N -U ~s"],
    [
        begin
            Path = path(Config),
            {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ifaddr, {local, Path}}]),
            Case = self(),
            Command = io_lib:format("printf 'said by a program' | " ++ Client, [Path]),
            spawn_link(fun() -> Case ! {output, os:cmd(Command)} end),
            ok = py_reactor_context:handoff(reactor_case:accept(Listener), #{}),
            receive
                {output, Output} -> ?assertEqual("said by a program", Output)
            end,
            ok = gen_tcp:close(Listener),
            ok = file:delete(Path),
            {_} = next(<<"made">>),
            {} = next(<<"eof">>),
            {<<"eof">>} = next(<<"lost">>)
        end
     || Client <- Clients
    ].

unix_stream_delivers_everything_before_it_closes(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    self.write_buffer += b'0123456789' * 500_000\n"
        "    return 'close'\n"
    ),
    exec("pair()"),
    ok = handed("give(ours)"),
    {_} = next(<<"made">>),
    %% More than one read: what is not read must not destroy what was sent.
    ?assert(eval("theirs.sendall(bytes(100_000)) or received(10**7) == b'0123456789' * 500_000")),
    exec("theirs.close()"),
    {<<"closed">>} = next(<<"lost">>).

socketpair_made_in_python_is_served(_Config) ->
    exec("pair()"),
    ok = handed("give(ours)"),
    {Info} = next(<<"made">>),
    ?assertEqual(#{<<"type">> => <<"unix">>}, Info),
    exec(
        "data = os.urandom(1_000_000)\n"
        "threading.Thread(target=theirs.sendall, args=(data,)).start()\n"
        "assert received(len(data)) == data\n"
        "theirs.shutdown(socket.SHUT_WR)\n"
        "assert theirs.recv(1) == b''\n"
        "theirs.close()"
    ),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

both_ends_of_a_socketpair_may_be_served(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    super().connection_made(fd, client_info)\n"
        "    if client_info['serves']:\n"
        "        self.write_buffer += b'0'\n"
        "def data_received(self, data):\n"
        "    count = int(data) + 1\n"
        "    if count == 1000:\n"
        "        tell('reached')\n"
        "        return 'close'\n"
        "    self.write_buffer += b'%d' % count\n"
    ),
    exec("pair()"),
    ok = told:handed("give(theirs)", #{serves => false}),
    ok = told:handed("give(ours)", #{serves => true}),
    {_} = next(<<"made">>),
    {_} = next(<<"made">>),
    {<<"reached">>} = next(),
    ?assertEqual(
        [{<<"eof">>}, {<<"lost">>, <<"closed">>}, {<<"lost">>, <<"eof">>}],
        lists:sort([next() || _ <- [1, 2, 3]])
    ).

a_unix_peer_that_is_gone_for_good_is_noticed(_Config) ->
    [
        begin
            protocol(
                ["def data_received(self, data):\n"
                 "    tell('data', data)\n"
                 "def eof_received(self):\n"
                 "    tell('eof')\n"
                 "    return '", Action, "'\n"]
            ),
            exec("pair()"),
            ok = handed("give(ours)"),
            {_} = next(<<"made">>),
            exec("theirs.send(b'x')\ntheirs.close()"),
            {<<"x">>} = next(<<"data">>),
            {} = next(<<"eof">>),
            {<<"peer_gone">>} = next(<<"lost">>)
        end
     || Action <- ["continue", "pause", "read_pending"], _ <- lists:seq(1, 5)
    ].

%%--------------------------------------------------------------------------------------------------
%% Datagrams

udp_answers_each_sender(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    tell('data', data, self.peer)\n"
        "    tell('sent', self.write(data * 2))\n"
    ),
    {Server, Port} = udp([]),
    ok = py_reactor_context:handoff(Server, #{}),
    {Info} = next(<<"made">>),
    ?assertEqual(#{<<"type">> => <<"udp">>}, Info),
    Clients = [udp([]) || _ <- [1, 2, 3]],
    [
        begin
            ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, Data),
            {Data, {<<"127.0.0.1">>, ClientPort}} = next(<<"data">>),
            {_} = next(<<"sent">>),
            Twice = <<Data/binary, Data/binary>>,
            ?assertEqual({ok, {{127, 0, 0, 1}, Port, Twice}}, gen_udp:recv(Client, 0, ?PATIENCE_MS))
        end
     || _ <- lists:seq(1, 10), {Client, ClientPort} <- Clients, Data <- [<<"a">>, rand:bytes(2000)]
    ],
    [ok = gen_udp:close(Client) || {Client, _} <- Clients],
    end_of_type(<<"udp">>).

udp_sends_write_buffer_as_one_datagram(_Config) ->
    {Server, Port} = udp([]),
    ok = py_reactor_context:handoff(Server, #{}),
    {_} = next(<<"made">>),
    {Client, _} = udp([{buffer, 70000}]),
    [
        begin
            Data = rand:bytes(Size),
            ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, Data),
            {ok, {_, Port, Got}} = gen_udp:recv(Client, 0, ?PATIENCE_MS),
            ?assert(Data =:= Got)
        end
     || Size <- [1, 1400, 1500, 9000, 65507]
    ],
    ok = gen_udp:close(Client),
    end_of_type(<<"udp">>).

udp_over_ipv6_is_served_too(_Config) ->
    protocol(
        "def datagram_received(self, data, addr):\n"
        "    tell('datagram', addr, self.write(data))\n"
    ),
    {Server, Port} = udp([inet6, {ip, {0, 0, 0, 0, 0, 0, 0, 1}}]),
    ok = py_reactor_context:handoff(Server, #{}),
    {_} = next(<<"made">>),
    {Client, ClientPort} = udp([inet6, {ip, {0, 0, 0, 0, 0, 0, 0, 1}}]),
    ok = gen_udp:send(Client, {0, 0, 0, 0, 0, 0, 0, 1}, Port, "six"),
    {{<<"::1">>, ClientPort, 0, 0}, 3} = next(<<"datagram">>),
    {ok, {_, Port, <<"six">>}} = gen_udp:recv(Client, 0, ?PATIENCE_MS),
    ok = gen_udp:close(Client),
    end_of_type(<<"udp">>).

datagram_received_gets_empty_ones_too(_Config) ->
    protocol(
        "def datagram_received(self, data, addr):\n"
        "    tell('datagram', data, addr == self.peer)\n"
        "    tell('sent', self.write(b'' if data else b'was empty'))\n"
    ),
    {Server, Port} = udp([]),
    ok = py_reactor_context:handoff(Server, #{}),
    {_} = next(<<"made">>),
    {Client, _} = udp([]),
    [
        begin
            ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, Data),
            {Data, true} = next(<<"datagram">>),
            {_} = next(<<"sent">>),
            {ok, {_, Port, Answer}} = gen_udp:recv(Client, 0, ?PATIENCE_MS)
        end
     || {Data, Answer} <- [{<<>>, <<"was empty">>}, {<<"full">>, <<>>}, {<<>>, <<"was empty">>}]
    ],
    ok = gen_udp:close(Client),
    end_of_type(<<"udp">>).

data_received_gets_no_empty_datagram(_Config) ->
    protocol("def data_received(self, data):\n    tell('data', data)\n"),
    {Server, Port} = udp([]),
    ok = py_reactor_context:handoff(Server, #{}),
    {_} = next(<<"made">>),
    {Client, _} = udp([]),
    Datagrams = ["", "one", "", "", "two", ""],
    [ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, Data) || Data <- Datagrams],
    {<<"one">>} = next(<<"data">>),
    {<<"two">>} = next(<<"data">>),
    nothing(),
    ok = gen_udp:close(Client),
    end_of_type(<<"udp">>).

udp_keeps_the_order_and_bounds_of_many(_Config) ->
    protocol("def data_received(self, data):\n    tell('data', data)\n"),
    {Server, Port} = udp([{recbuf, 1_000_000}]),
    ok = py_reactor_context:handoff(Server, #{}),
    {_} = next(<<"made">>),
    {Client, _} = udp([]),
    Datagrams = [integer_to_binary(N) || N <- lists:seq(1, 300)],
    [ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, Data) || Data <- Datagrams],
    ?assertEqual(Datagrams, [element(1, next(<<"data">>)) || _ <- Datagrams]),
    ok = gen_udp:close(Client),
    end_of_type(<<"udp">>).

udp_outlives_a_receiver_that_is_gone(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    if data == b'wait':\n"
        "        tell('waiting')\n"
        "        globals()['go'].wait()\n"
        "        for _ in range(3):\n"
        "            try:\n"
        "                self.write(b'into the void')\n"
        "            except ConnectionRefusedError:\n"
        "                pass\n"
        "    else:\n"
        "        self.write_buffer += data\n"
    ),
    exec("go = threading.Event()"),
    {Server, Port} = udp([]),
    ok = py_reactor_context:handoff(Server, #{}),
    {_} = next(<<"made">>),
    {Gone, _} = udp([]),
    ok = gen_udp:send(Gone, {127, 0, 0, 1}, Port, "wait"),
    {<<"waiting">>} = next(),
    ok = gen_udp:close(Gone),
    none = eval("go.set()"),
    {Client, _} = udp([]),
    ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, "still here"),
    {ok, {_, Port, <<"still here">>}} = gen_udp:recv(Client, 0, ?PATIENCE_MS),
    ok = gen_udp:close(Client),
    end_of_type(<<"udp">>).

udp_answers_a_program(_Config) ->
    protocol("def data_received(self, data):\n    self.write(data.upper())\n    return 'close'\n"),
    {Server, Port} = udp([]),
    ok = py_reactor_context:handoff(Server, #{}),
    {_} = next(<<"made">>),
    Command = "printf hello | socat -t 20 - UDP4:127.0.0.1:~b,readbytes=5",
    ?assertEqual("HELLO", os:cmd(io_lib:format(Command, [Port]))),
    {<<"closed">>} = next(<<"lost">>).

a_connected_udp_socket_has_a_peer_at_once(_Config) ->
    exec(
        "theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "theirs.settimeout(20)\n"
        "theirs.bind(('127.0.0.1', 0))\n"
        "ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "ours.connect(theirs.getsockname())"
    ),
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    tell('made', client_info, self.peer == theirs.getsockname(), self.write(b'first'))\n"
        "def data_received(self, data):\n"
        "    self.write_buffer += data\n"
        "    return 'close'\n"
    ),
    ok = handed("give(ours)"),
    {#{<<"addr">> := <<"127.0.0.1">>, <<"type">> := <<"udp">>}, true, 5} = next(<<"made">>),
    {_, Ours} = eval("theirs.recvfrom(100)"),
    ?assertEqual(4, eval("theirs.sendto(b'back', tuple(to))", #{to => tuple_to_list(Ours)})),
    ?assertEqual(<<"back">>, eval("theirs.recv(100)")),
    exec("theirs.close()"),
    {<<"closed">>} = next(<<"lost">>).

unix_datagram_answers_a_bound_peer(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    tell('data', len(data), self.peer)\n"
        "    tell('sent', self.write(data))\n"
    ),
    exec(
        "ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "ours.bind(folder + '/ours')\n"
        "theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "theirs.settimeout(20)\n"
        "theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 300_000)\n"
        "theirs.bind(folder + '/theirs')"
    ),
    ok = handed("give(ours)"),
    {#{<<"type">> := <<"unix_dgram">>}} = next(<<"made">>),
    [
        begin
            exec(
                io_lib:format(
                    "data = os.urandom(~b)\n"
                    "assert theirs.sendto(data, folder + '/ours') == len(data)",
                    [Size]
                )
            ),
            {Size, {Path}} = next(<<"data">>),
            ?assertEqual(eval("folder + '/theirs'"), Path),
            {Size} = next(<<"sent">>),
            ?assert(eval("theirs.recv(300_000) == data"))
        end
     || Size <- [1, 1000, 65536, 150_000]
    ],
    exec("theirs.close()"),
    end_of_type(<<"unix_dgram">>).

unix_datagram_of_an_unbound_peer_has_no_address(_Config) ->
    protocol(
        "def datagram_received(self, data, addr):\n"
        "    tell('datagram', data, addr, self.peer)\n"
        "    try:\n"
        "        self.write(b'to nobody')\n"
        "    except OSError as error:\n"
        "        tell('error', error.errno in (errno.ENOTCONN, errno.EDESTADDRREQ))\n"
    ),
    exec(
        "ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "ours.bind(folder + '/ours')\n"
        "theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "bound.bind(folder + '/bound')"
    ),
    ok = handed("give(ours)"),
    {_} = next(<<"made">>),
    3 = eval("theirs.sendto(b'one', folder + '/ours')"),
    {<<"one">>, none, none} = next(<<"datagram">>),
    {true} = next(<<"error">>),
    3 = eval("bound.sendto(b'two', folder + '/ours')"),
    {<<"two">>, {_}, {_}} = next(<<"datagram">>),
    %% The answer must not go to the sender of an earlier one.
    5 = eval("theirs.sendto(b'three', folder + '/ours')"),
    {<<"three">>, none, none} = next(<<"datagram">>),
    {true} = next(<<"error">>),
    exec("theirs.close()\nbound.close()"),
    end_of_type(<<"unix_dgram">>).

datagram_socketpair_made_in_python_is_served(_Config) ->
    exec("pair(socket.SOCK_DGRAM)"),
    ok = handed("give(ours)"),
    {_} = next(<<"made">>),
    exec(
        "for data in b'one', b'two' * 1000, b'', b'three':\n"
        "    theirs.send(data)\n"
        "assert [theirs.recv(10_000) for _ in range(3)] == [b'one', b'two' * 1000, b'three']\n"
        "theirs.close()"
    ),
    end_of_type(<<"unix_dgram">>).

%%--------------------------------------------------------------------------------------------------
%% Pipes, FIFOs and terminals

reading_end_of_a_pipe_is_served(_Config) ->
    protocol("total = 0\ndef data_received(self, data):\n    tell('data', len(data))\n"),
    exec("ours, theirs = os.pipe()"),
    ok = handed("ours"),
    {#{<<"type">> := <<"pipe">>}} = next(<<"made">>),
    exec(
        "data = bytes(1_000_000)\n"
        "while data:\n"
        "    data = data[os.write(theirs, data):]\n"
        "os.close(theirs)"
    ),
    ?assertEqual(1_000_000, bytes_until_eof(0)),
    {<<"eof">>} = next(<<"lost">>).

bytes_until_eof(Total) ->
    case next() of
        {<<"data">>, Size} -> bytes_until_eof(Total + Size);
        {<<"eof">>} -> Total
    end.

writing_end_of_a_pipe_is_served(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.write_buffer += b'0123456789' * 100_000\n"
        "    tell('made', fd)\n"
        "    return 'write_pending'\n"
    ),
    exec("theirs, ours = os.pipe()"),
    ok = handed("ours"),
    {Fd} = next(<<"made">>),
    exec(
        "data = b''\n"
        "while len(data) < 10**6:\n"
        "    data += os.read(theirs, 65536)\n"
        "assert data == b'0123456789' * 100_000"
    ),
    %% Nobody reads from it, and it stays.
    nothing(),
    exec(["reactor.get_protocol(", integer_to_list(Fd), ").write(b'later')"]),
    <<"later">> = eval("os.read(theirs, 100)"),
    nothing(),
    exec("os.close(theirs)"),
    {<<"reset">>} = next(<<"lost">>),
    nothing().

writing_end_of_a_pipe_closes_after_its_buffer(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.write_buffer += bytes(500_000)\n"
        "    tell('made', fd)\n"
        "    return 'close'\n"
    ),
    exec("theirs, ours = os.pipe()"),
    ok = handed("ours"),
    {_} = next(<<"made">>),
    exec(
        "with open(theirs, 'rb') as reader:\n"
        "    assert reader.read() == bytes(500_000)"
    ),
    {<<"closed">>} = next(<<"lost">>).

a_full_pipe_whose_reader_goes_is_lost(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.write_buffer += bytes(500_000)\n"
        "    tell('made', fd)\n"
        "    return 'write_pending'\n"
    ),
    exec("theirs, ours = os.pipe()"),
    ok = handed("ours"),
    {_} = next(<<"made">>),
    nothing(),
    exec("os.close(theirs)"),
    {<<"reset">>} = next(<<"lost">>),
    nothing().

pipe_to_and_from_a_program_is_served(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    tell('data', len(data))\n"
    ),
    exec(
        "import subprocess\n"
        "child = subprocess.Popen(['head', '-c', '300000', '/dev/zero'], stdout=subprocess.PIPE)\n"
        "ours = child.stdout.fileno()"
    ),
    Fd = eval("os.dup(ours)"),
    exec("child.stdout.close()"),
    ok = py_reactor_context:handoff(Fd, #{}),
    none = eval("os.close(fd)", #{fd => Fd}),
    {_} = next(<<"made">>),
    ?assertEqual(300_000, bytes_until_eof(0)),
    {<<"eof">>} = next(<<"lost">>),
    ?assertEqual(0, eval("child.wait()")).

fifo_takes_what_programs_write(Config) ->
    exec("os.mkfifo(folder + '/fifo')"),
    ok = handed("os.open(folder + '/fifo', os.O_RDWR)"),
    {#{<<"type">> := <<"pipe">>}} = next(<<"made">>),
    exec("P = None\n"),
    Path = filename:join(?config(folder, Config), "fifo"),
    protocol("def data_received(self, data):\n    tell('data', data)\n"),
    ok = handed("os.open(folder + '/fifo', os.O_RDONLY | os.O_NONBLOCK)"),
    {_} = next(<<"made">>),
    %% The first reader echoes into the FIFO what it gets, so there must be one only.
    exec(
        "first, = [p for p in reactor._registry.protocols.values() if type(p) is Echo]\n"
        "reactor.resume(first, 'pause')"
    ),
    "" = os:cmd(["printf 'from a shell' > ", Path]),
    {<<"from a shell">>} = next(<<"data">>),
    exec("reactor.resume(first, 'close')"),
    ?assertEqual(
        [{<<"eof">>}, {<<"lost">>, <<"closed">>}, {<<"lost">>, <<"eof">>}],
        lists:sort([next() || _ <- [1, 2, 3]])
    ),
    exec("del first").

terminal_is_served_line_by_line(_Config) ->
    protocol(
        "def data_received(self, data):\n"
        "    tell('data', data)\n"
        "    self.write_buffer += b'you said ' + data\n"
    ),
    exec("theirs, ours = os.openpty()"),
    ok = handed("ours"),
    {#{<<"type">> := <<"tty">>}} = next(<<"made">>),
    [
        begin
            exec(["assert os.write(theirs, b'", Line, "\\n') > 0"]),
            Said = iolist_to_binary([Line, "\n"]),
            {Said} = next(<<"data">>),
            Wanted = iolist_to_binary([Line, "\r\nyou said ", Line, "\r\n"]),
            ?assertEqual(Wanted, read_terminal(byte_size(Wanted), <<>>))
        end
     || Line <- ["hello", "again", ""]
    ],
    exec("os.write(theirs, b'two\\nlines\\n')"),
    {<<"two\n">>} = next(<<"data">>),
    {<<"lines\n">>} = next(<<"data">>),
    exec("os.close(theirs)"),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

read_terminal(Size, Read) when byte_size(Read) >= Size ->
    Read;
read_terminal(Size, Read) ->
    Part = eval("os.read(theirs, size)", #{size => Size - byte_size(Read)}),
    read_terminal(Size, <<Read/binary, Part/binary>>).

terminal_may_end_its_input_by_control_d(_Config) ->
    protocol("def data_received(self, data):\n    tell('data', data)\n"),
    exec("theirs, ours = os.openpty()"),
    ok = handed("ours"),
    {_} = next(<<"made">>),
    exec("os.write(theirs, b'no newline\\x04')"),
    {<<"no newline">>} = next(<<"data">>),
    exec("os.write(theirs, b'\\x04')"),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>),
    exec("os.close(theirs)").

master_of_a_terminal_is_served(_Config) ->
    exec("ours, theirs = os.openpty()\nimport tty\ntty.setraw(theirs)"),
    ok = handed("ours"),
    {#{<<"type">> := <<"tty">>}} = next(<<"made">>),
    exec("os.write(theirs, b'from the program')"),
    ?assertEqual(<<"from the program">>, read_terminal(16, <<>>)),
    exec("os.close(theirs)"),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

terminal_that_is_open_for_writing_only_ignores_input(_Config) ->
    exec(
        "theirs, slave = os.openpty()\n"
        "ours = os.open(os.ttyname(slave), os.O_WRONLY | os.O_NOCTTY)"
    ),
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    self.write_buffer += b'prompt'\n"
        "    tell('made', fd)\n"
        "    return 'write_pending'\n"
    ),
    ok = handed("ours"),
    {Fd} = next(<<"made">>),
    ?assertEqual(<<"prompt">>, read_terminal(6, <<>>)),
    exec("os.write(theirs, b'typed\\n')"),
    nothing(),
    5 = eval("reactor.get_protocol(fd).write(b'still')", #{fd => Fd}),
    ?assert(eval("reactor.resume(reactor.get_protocol(fd), 'close')", #{fd => Fd})),
    {<<"closed">>} = next(<<"lost">>),
    exec("os.close(theirs)\nos.close(slave)").

one_who_makes_a_shared_file_block_holds_up_nobody(_Config) ->
    protocol("def data_received(self, data):\n    tell('data', data)\n"),
    [
        begin
            exec(["theirs, ours = ", Pair]),
            {Give, Other} = Ends,
            Fd = eval(Give),
            ok = py_reactor_context:handoff(Fd, #{}),
            {_} = next(<<"made">>),
            [
                begin
                    exec(io_lib:format("os.set_blocking(~b, True)", [Fd])),
                    exec(["os.write(", Other, ", b'line\\n')"]),
                    {<<"line\n">>} = next(<<"data">>),
                    nothing()
                end
             || _ <- [1, 2, 3]
            ],
            exec("os.close(theirs)\nos.close(ours)"),
            {} = next(<<"eof">>),
            {<<"eof">>} = next(<<"lost">>)
        end
     || {Pair, Ends} <- [
            {"os.openpty()", {"ours", "theirs"}},
            {"os.pipe()[::-1]", {"ours", "theirs"}}
        ]
    ].

one_who_makes_a_full_pipe_block_holds_up_nobody(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    os.set_blocking(ours, True)\n"
        "    self.write_buffer += bytes(1_000_000)\n"
        "    tell('made', fd)\n"
    ),
    exec("theirs, ours = os.pipe()"),
    ok = py_reactor_context:handoff(eval("ours"), #{}),
    {_} = next(<<"made">>),
    exec("os.close(ours)"),
    nothing(),
    exec("total = 0\nwhile total < 1_000_000:\n    total += len(os.read(theirs, 65536))"),
    exec("os.close(theirs)"),
    {<<"reset">>} = next(<<"lost">>).

%%--------------------------------------------------------------------------------------------------
%% What is done to the descriptor

our_duplicate_does_not_block_and_is_not_inherited(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    tell('flags', bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK),\n"
        "         bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC))\n"
        "    return 'close'\n"
    ),
    exec(
        "pair()\n"
        "r, w = os.pipe()\n"
        "master, slave = os.openpty()\n"
        "for fd in ours.fileno(), r, w, slave:\n"
        "    os.set_blocking(fd, True)\n"
        "    os.set_inheritable(fd, True)"
    ),
    [
        begin
            ok = handed(Expression),
            ?assertEqual({<<"flags">>, true, true}, next()),
            {<<"closed">>} = next(<<"lost">>)
        end
     || Expression <- ["give(ours)", "r", "w", "slave"]
    ],
    exec("theirs.close()\nos.close(master)").

tcp_nodelay_is_set_unless_info_says_no(_Config) ->
    protocol(
        "def connection_made(self, fd, client_info):\n"
        "    with socket.socket(fileno=os.dup(fd)) as same:\n"
        "        nodelay = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)\n"
        "    tell('nodelay', bool(nodelay), 'nodelay' in client_info)\n"
    ),
    [
        begin
            {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}, {nodelay, false}], []),
            ok = py_reactor_context:handoff(Server, Info),
            ?assertEqual({<<"nodelay">>, Wanted, false}, next()),
            end_of(Client)
        end
     || {Info, Wanted} <- [{#{}, true}, {#{nodelay => true}, true}, {#{nodelay => false}, false}]
    ].

%%--------------------------------------------------------------------------------------------------
%% How it is named

a_socket_of_gen_tcp_is_consumed(_Config) ->
    {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    ok = py_reactor_context:handoff(Server, #{}),
    ?assertEqual(undefined, erlang:port_info(Server)),
    end_by_shutdown(Client).

a_number_of_gen_tcp_is_consumed(_Config) ->
    {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    {ok, Fd} = inet:getfd(Server),
    ok = py_reactor_context:handoff(Fd, #{}),
    ?assertEqual(undefined, erlang:port_info(Server)),
    end_by_shutdown(Client).

a_socket_of_gen_tcp_with_the_new_backend_is_consumed(_Config) ->
    {ok, Listener} = gen_tcp:listen(0, [
        {inet_backend, socket}, binary, {active, false}, {ip, {127, 0, 0, 1}}
    ]),
    {ok, Port} = inet:port(Listener),
    [
        begin
            {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
            Server = reactor_case:accept(Listener),
            ok = py_reactor_context:handoff(Server, #{}),
            ?assertMatch({error, _}, inet:sockname(Server)),
            end_by_shutdown(Client)
        end
     || _ <- [1, 2, 3]
    ],
    ok = gen_tcp:close(Listener).

a_socket_of_the_module_socket_is_consumed(_Config) ->
    {ok, Listener} = socket:open(inet, stream, tcp),
    ok = socket:bind(Listener, #{family => inet, addr => {127, 0, 0, 1}, port => 0}),
    ok = socket:listen(Listener),
    {ok, #{port := Port}} = socket:sockname(Listener),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    {ok, Server} = socket:accept(Listener, ?PATIENCE_MS),
    ok = socket:close(Listener),
    ok = py_reactor_context:handoff(Server, #{}),
    ?assertMatch({error, closed}, socket:sockname(Server)),
    end_by_shutdown(Client).

a_number_of_the_module_socket_is_duplicated(_Config) ->
    {ok, Listener} = socket:open(inet, stream, tcp),
    ok = socket:bind(Listener, #{family => inet, addr => {127, 0, 0, 1}, port => 0}),
    ok = socket:listen(Listener),
    {ok, #{port := Port}} = socket:sockname(Listener),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    {ok, Server} = socket:accept(Listener, ?PATIENCE_MS),
    ok = socket:close(Listener),
    {ok, Fd} = socket:getopt(Server, {otp, fd}),
    ok = py_reactor_context:handoff(Fd, #{}),
    ok = socket:close(Server),
    end_by_shutdown(Client).

a_socket_of_gen_udp_is_consumed(_Config) ->
    [
        begin
            Options = Backend ++ [binary, {active, false}, {ip, {127, 0, 0, 1}}],
            {ok, Server} = gen_udp:open(0, Options),
            {ok, Port} = inet:port(Server),
            ok = py_reactor_context:handoff(Server, #{}),
            ?assertMatch({error, _}, inet:port(Server)),
            {_} = next(<<"made">>),
            {Client, _} = udp([]),
            ok = gen_udp:send(Client, {127, 0, 0, 1}, Port, "echo"),
            {ok, {_, Port, <<"echo">>}} = gen_udp:recv(Client, 0, ?PATIENCE_MS),
            ok = gen_udp:close(Client),
            end_of_type(<<"udp">>)
        end
     || Backend <- [[], [{inet_backend, socket}]]
    ].

a_number_of_another_process_is_closed_by_its_owner(_Config) ->
    Case = self(),
    Owner = spawn_link(fun() ->
        Case ! {tcp, told:stream([{ip, {127, 0, 0, 1}}], [])},
        receive
            {close, Socket} -> Case ! {closed, gen_tcp:close(Socket)}
        end
    end),
    receive {tcp, {Client, Server}} -> ok end,
    {ok, Fd} = inet:getfd(Server),
    ok = py_reactor_context:handoff(Fd, #{}),
    {_} = next(<<"made">>),
    echoes(Client, <<"one">>),
    Owner ! {close, Server},
    receive {closed, ok} -> ok end,
    wait_until("the client's port is gone with its owner", fun() ->
        erlang:port_info(Client) =:= undefined
    end),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

a_connected_client_may_be_handed_over(_Config) ->
    {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    ok = py_reactor_context:handoff(Client, #{}),
    end_by_shutdown(Server).

input_that_came_before_the_handoff_is_not_lost(_Config) ->
    {Client, Server} = told:stream([{ip, {127, 0, 0, 1}}], []),
    Data = rand:bytes(100_000),
    ok = gen_tcp:send(Client, Data),
    ok = gen_tcp:shutdown(Client, write),
    ok = py_reactor_context:handoff(Server, #{}),
    ?assert(Data =:= await_closed(Client)),
    {_} = next(<<"made">>),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

%%--------------------------------------------------------------------------------------------------

path(Config) ->
    filename:join(?config(folder, Config), "socket").

udp(Options) ->
    Address = [{ip, {127, 0, 0, 1}} || not lists:member(inet6, Options)],
    {ok, Socket} = gen_udp:open(0, [binary, {active, false}] ++ Address ++ Options),
    {ok, Port} = inet:port(Socket),
    {Socket, Port}.

end_by_shutdown(Client) ->
    {_} = next(<<"made">>),
    echoes(Client, <<"served">>),
    ok = gen_tcp:shutdown(Client, write),
    ?assertEqual(<<>>, await_closed(Client)),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

end_of(Client) ->
    ok = gen_tcp:close(Client),
    {} = next(<<"eof">>),
    {<<"eof">>} = next(<<"lost">>).

%% Nobody tells a datagram socket that it is over.
end_of_type(Type) ->
    ?assert(eval(
        "[reactor.resume(p, 'close') for p in list(reactor._registry.protocols.values())"
        " if p.client_info['type'] == type_] == [True]",
        #{type_ => Type}
    )),
    {<<"closed">>} = next(<<"lost">>).

%%% The examples letter by letter, what a protocol is told of its client, and every attribute,
%%% callback and action of `erlang.reactor.Protocol', over real sockets.
%%%
%%% Every case runs twice: with connections that stay with their worker for a while, and with
%%% connections that are parked in the BEAM after each event.
-module(reactor_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all, nowarn_missing_spec]).

-import(reactor_case, [await_closed/1, echoes/2, wait_until/2]).
-import(told, [protocol/1, exec/1, eval/2, next/1]).

-define(PATIENCE_MS, 20000).

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
    told:cases(?MODULE).

init_per_suite(Config) ->
    Examples = filename:join(told:root(), "examples"),
    [load_example(Examples, Name) || Name <- [echo, http]],
    [{examples, Examples} | Config].

end_per_suite(_Config) ->
    ok.

load_example(Examples, Name) ->
    File = filename:join(Examples, Name),
    {ok, Name, Beam} = compile:file(File, [binary]),
    {module, Name} = code:load_binary(Name, File, Beam).

init_per_group(Group, Config) ->
    LingerMs = maps:get(Group, #{lingering => 20, parked_at_once => 0}),
    told:start(#{linger_ms => LingerMs}),
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
    {Server, Port} = serve_example(fun() -> echo:listen(0) end),
    Clients = [client(Port) || _ <- lists:seq(1, 10)],
    Sizes = [1, 2, 64, 65535, 65536, 65537, 10240, 1],
    [echoes(Client, rand:bytes(Size)) || Size <- Sizes, Client <- Clients],
    [ok = gen_tcp:close(Client) || Client <- Clients],
    stop_example(Server).

the_echo_example_echoes_more_than_the_kernel_buffers(_Config) ->
    {Server, Port} = serve_example(fun() -> echo:listen(0) end),
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
    {Server, Port} = serve_example(fun() -> echo:listen(0) end),
    Client = client(Port),
    echoes(Client, <<"last words">>),
    ok = gen_tcp:shutdown(Client, write),
    ?assertEqual(<<>>, await_closed(Client)),
    stop_example(Server).

the_echo_example_has_the_client_info_that_is_documented(_Config) ->
    exec(
        "import my_protocols\n"
        "class MyProtocol(my_protocols.MyProtocol):\n"
        "    def connection_made(self, fd, client_info):\n"
        "        assert fd == self.fd and client_info is self.client_info\n"
        "        tell('info', client_info, repr(client_info), type(client_info).__name__)\n"
        "original, my_protocols.MyProtocol = my_protocols.MyProtocol, MyProtocol"
    ),
    {Server, Port} = serve_example(fun() -> echo:listen(0) end),
    exec("my_protocols.MyProtocol = original"),
    Client = client(Port),
    {ok, ClientPort} = inet:port(Client),
    Info = #{<<"addr">> => <<"127.0.0.1">>, <<"port">> => ClientPort, <<"type">> => <<"tcp">>},
    {Info, Repr, <<"dict">>} = next(<<"info">>),
    Wanted = "{'addr': '127.0.0.1', 'port': port, 'type': 'tcp'}",
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

%% Runs an example's own accept loop on a port of its own.
serve_example(Listen) ->
    Case = self(),
    Server = spawn(fun() ->
        Listener = Listen(),
        {ok, Port} = inet:port(Listener),
        Case ! {self(), Port},
        echo:accept_loop(Listener)
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

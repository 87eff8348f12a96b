%%% Protocols that tell a case what happens to them.
%%%
%%% A case defines a subclass `P' of the Python class `Told' and so gets, as messages:
%%% `{<<"made">>, ClientInfo}', `{<<"data">>, Data}', `{<<"eof">>}', `{<<"lost">>, Reason}', and
%%% whatever else its own code passes to `tell'.
-module(told).

-include_lib("stdlib/include/assert.hrl").

%% The frame of a suite and of a case
-export([cases/1, groups/1, linger_ms/1, start/1, begin_case/1, end_case/1, root/0]).
%% Protocols
-export([protocol/1, exec/1, eval/1, eval/2]).
%% Connections
-export([connected/1, connected/2, stream/2, handed/1, handed/2]).
%% What was told
-export([next/0, next/1, nothing/0]).

-define(PATIENCE_MS, 20000).

%% The cases of a suite: what has a sentence for its name, that is four words or more.
cases(Suite) ->
    [Case || {Case, 1} <- Suite:module_info(exports), length(words(Case)) >= 4].

%% Each case with connections that linger with their worker, and with ones that are parked at once.
groups(Cases) ->
    [{lingering, [], Cases}, {parked_at_once, [], Cases}].

linger_ms(lingering) -> 20;
linger_ms(parked_at_once) -> 0.

words(Name) ->
    string:lexemes(atom_to_list(Name), "_").

%% Starts the application with these settings.
start(Settings) ->
    reactor_case:start(Settings),
    ok = py:exec(prelude()).

begin_case(Config) ->
    true = register(told, self()),
    reactor_case:begin_case(Config).

%% A case that failed leaves connections behind: they are ended here, so that the next one has a
%% fair start, and what failed first is what Common Test tells.
end_case(Config) ->
    Failed = proplists:get_value(tc_status, Config) =/= ok,
    [
        exec(
            "for protocol in list(reactor._registry.protocols.values()):\n"
            "    type(protocol) is P and reactor.resume(protocol, 'abort')"
        )
     || Failed
    ],
    true = eval("forget()"),
    case reactor_case:end_case(Config) of
        {fail, _} when Failed -> ok;
        Other -> Other
    end.

%% The folder of the project: rebar3 builds below it.
root() ->
    hd(string:split(filename:absname(code:which(?MODULE)), "/_build/")).

%% Defines the class `P' with this body and makes it the protocol factory.
protocol(Body) ->
    Text = unicode:characters_to_binary(Body),
    Dedented = eval("textwrap.indent(textwrap.dedent(body), '    ')", #{body => Text}),
    exec(["class P(Told):\n    pass\n", Dedented, "\nreactor.set_protocol_factory(P)\n"]).

exec(Code) ->
    ?assertEqual(ok, py:exec(Code)).

eval(Expression) ->
    eval(Expression, #{}).

eval(Expression, Locals) ->
    case py:eval(Expression, Locals, ?PATIENCE_MS) of
        {ok, Value} -> Value;
        Other -> error({Expression, Other})
    end.

%% The client of a new connection, after its `made'.
connected(Config) ->
    connected(Config, #{}).

connected(Config, Info) ->
    Client = reactor_case:open(proplists:get_value(listener, Config), Info),
    {_} = next(<<"made">>),
    Client.

%% The two ends of a connection.
stream(Listen, Connect) ->
    {ok, Listener} = gen_tcp:listen(0, Listen ++ [binary, {active, false}]),
    {ok, Address} = inet:sockname(Listener),
    {ok, Client} =
        case Address of
            {local, _} -> gen_tcp:connect(Address, 0, Connect ++ [binary, {active, false}]);
            {Ip, Port} -> gen_tcp:connect(Ip, Port, Connect ++ [binary, {active, false}])
        end,
    Server = reactor_case:accept(Listener),
    ok = gen_tcp:close(Listener),
    {Client, Server}.

%% Hands over a number that Python opened, and closes it there.
handed(Expression) ->
    handed(Expression, #{}).

handed(Expression, Info) ->
    Fd = eval(Expression),
    Answer = py_reactor_context:handoff(Fd, Info),
    none = eval("os.close(fd)", #{fd => Fd}),
    Answer.

%% The next that is told.
next() ->
    receive
        Message when is_binary(element(1, Message)) -> Message
    after ?PATIENCE_MS ->
        error(nothing_told)
    end.

%% The next, which begins with this word; returns the rest.
next(Word) ->
    Message = next(),
    ?assertEqual(Word, element(1, Message)),
    erlang:delete_element(1, Message).

%% Nothing is told any more. What a worker has told is here once a call that began later has ended.
nothing() ->
    reactor_case:wait_until("the workers rest", fun() ->
        lists:all(fun is_resting/1, py_reactor_pool:contexts())
    end),
    receive
        Message when is_binary(element(1, Message)) -> error({told, Message})
    after 50 -> ok
    end.

is_resting(Context) ->
    case py_reactor_context:stats(Context) of
        #{busy_ms := BusyMs} -> BusyMs =:= 0;
        {error, no_context} -> true
    end.

prelude() ->
    <<
        "import __main__\n"
        "import errno, fcntl, functools, os, socket, sys, tempfile, textwrap, threading, time\n"
        "import erlang\n"
        "import erlang.reactor as reactor\n"
        "\n"
        "def tell(*what):\n"
        "    try:\n"
        "        erlang.send('told', what)\n"
        "    except LookupError:\n"
        "        pass  # The case is over.\n"
        "\n"
        "class Told(reactor.Protocol):\n"
        "    def connection_made(self, fd, client_info):\n"
        "        tell('made', client_info)\n"
        "    def data_received(self, data):\n"
        "        tell('data', data)\n"
        "    def eof_received(self):\n"
        "        tell('eof')\n"
        "        return super().eof_received()\n"
        "    def connection_lost(self):\n"
        "        tell('lost', self.close_reason)\n"
        "\n"
        "def forget():\n"
        "    for name in set(globals()) - names:\n"
        "        del globals()[name]\n"
        "    reactor.set_protocol_factory(Told)\n"
        "    return True\n"
        "\n"
        "names = set(globals()) | {'names', 'P'}\n"
        "P = None\n"
        "reactor.set_protocol_factory(Told)\n"
    >>.
